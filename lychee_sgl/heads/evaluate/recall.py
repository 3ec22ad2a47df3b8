"""Where attention mass is lost: every sparse head's set beside the sets that it could have had.

A step's loss of a sparse head is 1 less the attention mass (mean over its group) that the set of its root holds. It is
the sum of five parts, none of which is negative: what is lost in going from all tokens to

* `size`: the current token and the head's own largest weights, as many as the set holds: no set holds more;
* `kept`: its own set, in which sinks and recent tokens take some of these places (`own` in the numbers);
* `alone`: the set that serves it best of those which heads of earlier layers would choose, whatever their role;
* `cover`: the best of those which the plan's retrieval heads choose;
* `choice`: the one which the plan gives it.

Which head serves best is found on the same steps, by the mean over prompts: in hindsight.

Shape legend: N heads of the model (layer * H + head), H of a layer, G query heads of a KV head, R earlier heads, m
decode steps that go through at once, n context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from lychee_kernels.layout import ratio_bounds
from lychee_kernels.select_tokens import select_mask
from lychee_sgl.heads.evaluate.run import LONGEST, chars_per_token, fitted
from lychee_sgl.heads.evaluate.tasks import TASKS, Cell
from lychee_sgl.heads.hybrid_hf import Decoding, generate, hybrid_attention, prefill
from lychee_sgl.heads.rows import check_supported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lychee_sgl.heads.haystack import Haystack
    from lychee_sgl.heads.measure import LoadedModel
    from lychee_sgl.heads.plan import Head, HeadPlan

PARTS = ("size", "kept", "alone", "cover", "choice")
WORST = 10
"""Heads whose share of all loss is told."""

ROOM = 256
"""Tokens by which a prompt may be longer than asked for: it is cut by characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallSettings:
    """What is decoded.

    Attributes:
        share: of the context that a set holds.
        contexts: tokens of the prompts, about.
        questions: of each task and context, and as many stretches of prose.
        steps: most decode steps of an answer; prose has exactly as many.
        seed: of all prompts.
    """

    share: float = 0.125
    contexts: tuple[int, ...] = (2000, 4000)
    questions: int = 1
    steps: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; allowed: a number between 0 and 1")
        for name, low in {"questions": 1, "steps": 1, "seed": 0}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: a whole number from {low}")
        if not self.contexts or min(self.contexts) < 64 or len({*self.contexts}) != len(self.contexts):
            told = ", ".join(map(str, self.contexts)) or "none"
            raise ValueError(f"context is {told}; allowed: different whole numbers from 64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Attention mass, mean over a prompt's decode steps.

    Attributes:
        sets: float64 [N, N]; [a, b] is what the set that head a would choose holds of head b's attention, where a's
            layer is before b's or a is b.
        free: float64 [N], what each head's own largest weights hold, none kept but the current token.
        equal: float64 [N], as the diagonal of `sets`, with sets so large that heads which all choose for themselves
            read as many entries as the plan does.
    """

    sets: torch.Tensor
    free: torch.Tensor
    equal: torch.Tensor


class Probe:
    """An observer of `Decoding` that adds up what sets hold."""

    def __init__(self, plan: HeadPlan, share: float) -> None:
        """Prepares the sums.

        Args:
            plan: whose sinks and recent tokens sets keep.
            share: of the context that a set holds.
        """
        self._share, self._equal_share = share, attended(plan, share)
        self._sinks, self._recent = plan.defaults.sinks, plan.defaults.recent
        total = plan.head_count
        self._sets = torch.zeros(total, total, dtype=torch.float64)
        self._free, self._equal = (torch.zeros(total, dtype=torch.float64) for _ in range(2))
        self._earlier: list[torch.Tensor] = []
        self._steps = 0

    def __call__(self, layer: int, probabilities: torch.Tensor, _values: torch.Tensor, _outputs: torch.Tensor) -> None:
        """See `Observer`."""
        means = probabilities.mean(1)  # [H, m, n]
        heads, steps, context = means.shape
        lengths = torch.arange(context - steps + 1, context + 1, device=means.device)
        if layer == 0:
            self._earlier.clear()  # sets live for one step
            self._steps += steps

        def best(share: float, sinks: int, recent: int) -> torch.Tensor:
            return select_mask(means, lengths, ratio_bounds(share, lengths), sinks=sinks, recent=recent)

        own, exact = best(self._share, self._sinks, self._recent), means.double()
        here = slice(layer * heads, (layer + 1) * heads)
        if self._earlier:
            held = torch.einsum("rmn,hmn->rh", torch.cat(self._earlier).double(), exact)
            self._sets[: here.start, here] += held.cpu()
        self._sets.diagonal()[here] += (exact * own).sum((1, 2)).cpu()
        self._free[here] += (exact * best(self._share, 0, 0)).sum((1, 2)).cpu()
        self._equal[here] += (exact * best(self._equal_share, self._sinks, self._recent)).sum((1, 2)).cpu()
        self._earlier.append(own)

    @property
    def held(self) -> Held:
        """Means over the steps so far.

        Raises:
            ValueError: there was none.
        """
        if not self._steps:
            raise ValueError("no decode step was observed; allowed: one or more")
        return Held(sets=self._sets / self._steps, free=self._free / self._steps, equal=self._equal / self._steps)


def attended(plan: HeadPlan, share: float) -> float:
    """Share of all KV entries that a plan reads: retrieval heads everything, sparse heads their sets."""
    retrieval = plan.retrieval_count / plan.head_count
    return retrieval + (1 - retrieval) * share


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    kind: str
    context: int
    tokens: list[int]
    stop: frozenset[int]
    longest: int


def _prompts(loaded: LoadedModel, haystack: Haystack, settings: RecallSettings) -> Iterator[_Prompt]:
    """Held-out questions of every task, and prose that goes on without an end."""
    density = chars_per_token(loaded, haystack)
    for number in range(settings.questions):
        for context in settings.contexts:
            for task in TASKS:
                _, tokens = fitted(loaded, Cell(task=task, tokens=context), number, settings.seed, haystack, density)
                longest = min(settings.steps, LONGEST[task])
                yield _Prompt(kind=task, context=context, tokens=tokens, stop=loaded.stop, longest=longest)
            draw = Random(f"lychee-sgl prose {settings.seed} {context} {number}")
            tokens = loaded.answer(haystack.bury(draw, [], [], context, density))[: context + ROOM]
            yield _Prompt(kind="prose", context=context, tokens=tokens, stop=frozenset(), longest=settings.steps)


def run_recall(
    loaded: LoadedModel,
    plan: HeadPlan,
    settings: RecallSettings,
    *,
    haystack: Haystack,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Decodes all prompts greedily under the plan and splits every sparse head's loss into its parts.

    Args:
        loaded: the model.
        plan: a plan that fits it, with at least one sparse head.
        settings: what is decoded.
        haystack: text that nothing was calibrated or trained on.
        tell: told how many prompts are done, and of how many.

    Returns:
        JSON values: `prompts`, `recall` (mean over prompts, with its standard error), and what `summary` gives.

    Raises:
        ValueError: the model is not supported, its window is too short, the plan has no sparse head, or no answer has
            a decode step.
    """
    check_supported(loaded.model)
    if not plan.sparse_heads():
        raise ValueError(f"head plan {plan.name!r} has no sparse head; allowed: a plan with one or more")
    window = int(loaded.model.config.max_position_embeddings)
    longest = window - settings.steps - ROOM
    if max(settings.contexts) > longest:
        raise ValueError(f"context is {max(settings.contexts)}; allowed: up to {longest} for {loaded.shape.name}")
    of = settings.questions * len(settings.contexts) * (len(TASKS) + 1)
    rows: list[dict[str, Any]] = []
    found: list[Held] = []
    for done, prompt in enumerate(_prompts(loaded, haystack, settings), start=1):
        probe = Probe(plan, settings.share)
        steps = _decode(loaded, plan, settings.share, prompt, probe)
        if steps:  # an answer that ended at once tells nothing
            found.append(probe.held)
            mean = _mean([row for row in _heads(plan, found[-1]) if row["root"] is not None])
            about = {"kind": prompt.kind, "context": prompt.context, "tokens": len(prompt.tokens), "steps": steps}
            rows.append(about | {"recall": mean["recall"], "own": mean["own"]})
        tell(done, of)
    if not found:
        raise ValueError("no answer has a decode step; allowed: prompts that the model answers")
    recalls = torch.tensor([row["recall"] for row in rows], dtype=torch.float64)
    error = float(recalls.std() / math.sqrt(len(recalls))) if len(recalls) > 1 else None
    told = {"mean": round(float(recalls.mean()), 6), "error": None if error is None else round(error, 6)}
    means = Held(**{name: torch.stack([getattr(one, name) for one in found]).mean(0) for name in Held.__slots__})
    return {"prompts": rows, "recall": told, **summary(plan, means, settings.share)}


def _decode(loaded: LoadedModel, plan: HeadPlan, share: float, prompt: _Prompt, probe: Probe) -> int:
    """Answer a prompt under the plan, watched by the probe; gives the decode steps."""
    decoding = Decoding(prefix=prefill(loaded.model, prompt.tokens), plan=plan, share=share, observer=probe)
    with hybrid_attention(loaded.model):
        generate(loaded.model, decoding, stop=prompt.stop, max_tokens=prompt.longest)
    return decoding.steps


def summary(plan: HeadPlan, held: Held, share: float) -> dict[str, Any]:
    """Every head's recall, and where the sparse heads' loss is.

    Args:
        plan: the plan.
        held: means over prompts.
        share: of the context that a set holds.

    Returns:
        JSON values: `heads`, one a KV head; `layers`, means over a layer's sparse heads; `all`, over all sparse heads;
        `shares`, of each part in all loss; `worst`, what the heads with the largest loss make of it; `equal`, what the
        heads' own sets would hold, mean over all heads, were all as large as the plan's reading allows, and `attended`.
    """
    heads = _heads(plan, held)
    sparse = [row for row in heads if row["root"] is not None]
    loss = sum(1 - row["recall"] for row in sparse)
    losses = sorted((1 - row["recall"] for row in sparse), reverse=True)
    layers = [
        {
            "layer": layer,
            "sparse": len(rows),
            **_mean(rows),
            "loss_share": _part(sum(1 - r["recall"] for r in rows), loss),
        }
        for layer in range(plan.model.num_hidden_layers)
        if (rows := [row for row in sparse if row["layer"] == layer])
    ]
    return {
        "share": share,
        "attended": round(attended(plan, share), 6),
        "equal": round(float(held.equal.mean()), 6),
        "all": _mean(sparse),
        "shares": {part: _part(sum(row["parts"][part] for row in sparse), loss) for part in PARTS},
        "worst": {"heads": min(WORST, len(sparse)), "loss_share": _part(sum(losses[:WORST]), loss)},
        "layers": layers,
        "heads": heads,
    }


def _part(some: float, whole: float) -> float:
    return round(some / whole, 6) if whole > 0 else 0.0


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall, own best and parts of some sparse heads."""
    one = {key: round(sum(row[key] for row in rows) / len(rows), 6) for key in ("recall", "own")}
    return {**one, "parts": {part: round(sum(row["parts"][part] for row in rows) / len(rows), 6) for part in PARTS}}


def _heads(plan: HeadPlan, held: Held) -> list[dict[str, Any]]:
    return [_head(plan, held, divmod(at, plan.model.num_key_value_heads)) for at in range(plan.head_count)]


def _head(plan: HeadPlan, held: Held, head: Head) -> dict[str, Any]:
    """One head; a retrieval head has `own` alone, what the set holds that it hands down."""
    layer, index = head
    width = plan.model.num_key_value_heads
    at = layer * width + index
    own = float(held.sets[at, at])
    row: dict[str, Any] = {"layer": layer, "head": index, "root": None, "own": round(own, 6)}
    if plan.is_retrieval(layer, index):
        return row
    root = plan.root(layer, index)
    before = held.sets[: layer * width, at]
    retrieves = torch.tensor([plan.is_retrieval(*divmod(i, width)) for i in range(layer * width)])
    serving = before.masked_fill(~retrieves, -1.0)
    recall, free = float(before[root[0] * width + root[1]]), float(held.free[at])
    steps = (1.0, free, own, float(before.max()), float(serving.max()), recall)
    return row | {
        "root": list(root),
        "distance": layer - root[0],
        "recall": round(recall, 6),
        "best_retrieval": list(divmod(int(serving.argmax()), width)),
        "best_earlier": list(divmod(int(before.argmax()), width)),
        "parts": {part: round(a - b, 6) for part, a, b in zip(PARTS, steps[:-1], steps[1:], strict=True)},
    }
