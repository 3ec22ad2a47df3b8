"""Plans that nothing was trained for: what a trained plan has to beat at the same number of retrieval heads.

All have exactly `retrieval` retrieval heads, those of layer 0 included, so all read the same bytes at the same budget.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from lychee_sgl.heads.cover import greedy_cover
from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.plan import HeadPlan, PlanDefaults

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from lychee_sgl.heads.plan import Head, ModelShape


def random_plan(shape: ModelShape, retrieval: int, *, seed: int, defaults: PlanDefaults) -> HeadPlan:
    """Retrieval heads drawn evenly from all behind layer 0; same-index sources."""
    behind = _behind_layer_0(shape, retrieval)
    drawn = Random(f"lychee-sgl random plan {seed}").sample(behind, retrieval - shape.num_key_value_heads)
    return _plan("random", shape, drawn, defaults, {"seed": seed})


def even_plan(shape: ModelShape, retrieval: int, *, defaults: PlanDefaults) -> HeadPlan:
    """Retrieval heads at even distances, counted layer by layer; same-index sources."""
    behind = _behind_layer_0(shape, retrieval)
    count = retrieval - shape.num_key_value_heads
    return _plan("even", shape, [behind[(2 * i + 1) * len(behind) // (2 * count)] for i in range(count)], defaults, {})


def layerwise_plan(shape: ModelShape, retrieval: int, *, defaults: PlanDefaults) -> HeadPlan:
    """Whole layers retrieve, as in TidalDecode: the first two, then layers at even distances; same-index sources.

    What does not fill a layer goes to the first heads of one more. TidalDecode gives all heads of a layer one set; here
    every index keeps its own, which is never worse for the heads that read it.
    """
    _behind_layer_0(shape, retrieval)
    layers, heads = shape.num_hidden_layers, shape.num_key_value_heads
    whole, rest = divmod(retrieval, heads)
    wanted = whole + (rest > 0)
    first = list(range(min(2, wanted)))
    count = wanted - len(first)
    chosen = first + [2 + (2 * i + 1) * (layers - 2) // (2 * count) for i in range(count)]
    picked = [(layer, head) for layer in chosen for head in range(heads)][:retrieval]
    return _plan("layerwise", shape, [head for head in picked if head[0] > 0], defaults, {})


def cover_plan(
    shape: ModelShape, retrieval: int, gain: torch.Tensor, *, weighting: str, defaults: PlanDefaults
) -> HeadPlan:
    """Retrieval heads and sources by greedy cover of measured gains."""
    cover = greedy_cover(gain, layers=shape.num_hidden_layers, heads=shape.num_key_value_heads, retrieval=retrieval)
    return HeadPlan(
        f"cover-{weighting}", shape, cover.roles, cover.sources, defaults,
        {"method": f"greedy cover, weighted by {weighting}", "scores": {"covered": round(cover.covered, 4)}},
    )  # fmt: skip


def chequered_plan(shape: ModelShape, *, defaults: PlanDefaults) -> HeadPlan:
    """The plan of a model that nobody has calibrated: half of the heads, whatever number was asked for."""
    plain = heuristic_plan(shape)
    return HeadPlan("heuristic", shape, plain.roles, plain.sources, defaults, plain.provenance)


def with_measured_sources(plan: HeadPlan, gain: torch.Tensor) -> HeadPlan:
    """The same roles, every sparse head reading the retrieval head of an earlier layer that is worth most to it.

    Args:
        plan: roles.
        gain: [N, N], `gain[a, b]` is what a's set is worth to b.
    """
    heads = plan.model.num_key_value_heads
    sources: dict[Head, Head] = {}
    for layer, head in plan.sparse_heads():
        at = layer * heads + head
        before = [
            (source, index) for source in range(layer) for index in range(heads) if plan.is_retrieval(source, index)
        ]
        sources[layer, head] = max(before, key=lambda pair: float(gain[pair[0] * heads + pair[1], at]))
    told = {**plan.provenance, "method": f"{plan.provenance['method']}, measured sources"}
    return HeadPlan(f"{plan.name}-measured", plan.model, plan.roles, sources, plan.defaults, told)


def _behind_layer_0(shape: ModelShape, retrieval: int) -> list[Head]:
    layers, heads = shape.num_hidden_layers, shape.num_key_value_heads
    if not heads < retrieval < layers * heads:
        raise ValueError(f"retrieval heads is {retrieval}; allowed: {heads + 1} to {layers * heads - 1} for {shape}")
    return [(layer, head) for layer in range(1, layers) for head in range(heads)]


def _plan(
    name: str, shape: ModelShape, retrieval: Iterable[Head], defaults: PlanDefaults, told: dict[str, int]
) -> HeadPlan:
    chosen = {*retrieval}
    roles = tuple(
        "".join("R" if layer == 0 or (layer, head) in chosen else "S" for head in range(shape.num_key_value_heads))
        for layer in range(shape.num_hidden_layers)
    )
    return HeadPlan(name, shape, roles, {}, defaults, {"method": name, **told})
