"""Which head plan an engine uses, and what each layer's heads do under it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lychee_kernels.layout import LayerHeads
from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.plan import HeadPlan, ModelShape
from lychee_sgl.heads.registry import find_plan

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPlan:
    """A plan that fits the model, and whether it is only the heuristic."""

    plan: HeadPlan
    heuristic: bool

    def describe(self) -> dict[str, Any]:
        """Gives the entry `plan` of `/lychee/info`."""
        method = self.plan.provenance.get("method")
        return {
            "name": self.plan.name,
            "method": method if isinstance(method, str) else None,
            "heuristic": self.heuristic,
            "retrieval_heads": self.plan.retrieval_count,
            "heads": self.plan.head_count,
            "sha256": self.plan.sha256(),
        }


def model_shape(hf_config: Any, model_path: str) -> ModelShape:
    """Reads the shape out of a Hugging Face config object; the model's path serves as its name."""
    return ModelShape.from_config(hf_config.to_dict(), name=model_path)


def choose_plan(path: Path | None, shape: ModelShape, *names: str | None) -> ChosenPlan:
    """Chooses the plan: the given file, else the one shipped for this model, else the heuristic.

    Args:
        path: a plan file, or None.
        shape: the served model's.
        names: what else the model is called, for finding the shipped plan; None (no served name was given) is skipped.

    Raises:
        PlanError: the file cannot be read or does not fit the model.
    """
    if path is not None:
        plan = HeadPlan.load(path)
        plan.check_fits(shape)
        return ChosenPlan(plan=plan, heuristic=plan.provenance.get("method") == "heuristic")
    shipped = find_plan(shape, *(name for name in names if name))
    if shipped is not None:
        return ChosenPlan(plan=shipped, heuristic=False)
    logger.warning(
        "No head plan for %s: half of its heads, evenly spread, retrieve. Answers may differ from dense more than they "
        "need to. Make a measured plan with `lychee-sgl heads calibrate --model %s --out plan.json` and serve it with "
        "--heads plan.json.",
        shape.name,
        shape.name,
    )
    return ChosenPlan(plan=heuristic_plan(shape), heuristic=True)


def layer_heads(plan: HeadPlan, columns: range | None = None) -> tuple[tuple[LayerHeads, ...], int]:
    """Resolves a plan into what each layer's heads write and read.

    Args:
        plan: in which no sparse head among `columns` has its root outside.
        columns: the KV heads of a layer that this rank has; all by default.

    Returns:
        One `LayerHeads` a layer, and R, the number of roots.
    """
    columns = range(plan.model.num_key_value_heads) if columns is None else columns
    index = {root: i for i, root in enumerate(root for root in plan.roots() if root[1] in columns)}
    layers = []
    for layer in range(plan.model.num_hidden_layers):
        heads = [(layer, head) for head in columns]
        layers.append(
            LayerHeads(
                writes=tuple(index.get(head, -1) if plan.is_retrieval(*head) else -1 for head in heads),
                reads=tuple(-1 if plan.is_retrieval(*head) else index[plan.root(*head)] for head in heads),
            )
        )
    return tuple(layers), len(index)
