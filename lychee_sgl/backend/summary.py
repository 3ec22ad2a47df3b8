"""From the increments of single decode steps to what an answer says of itself (DESIGN.md 2.4 and 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lychee_kernels.decode_plan.api import DENSE, Fallback
from lychee_kernels.policies import Policy
from lychee_sgl.backend.request import MODE_NAMES
from lychee_sgl.backend.rows import FALLBACK_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lychee_sgl.backend.request import RowSpec

INFO_KEY = "lychee"
"""Our entry in SGLang's `customized_info` and so in `meta_info`."""


class Step(NamedTuple):
    """One decode step of one request.

    Attributes:
        attended: KV entries read, over all layers and KV heads.
        dense_equivalent: KV entries that a dense step would have read.
        fallback: a `Fallback`.
        budget: tokens a set might hold at this step; `DENSE`, or the context's length where nothing bounds it.
        context: tokens in the context, the current one included.
        recall: attention mass held by the sparse heads' sets; None where the step was not audited.
        batch: requests that took this step together.
    """

    attended: int
    dense_equivalent: int
    fallback: int
    budget: int
    context: int
    recall: float | None
    batch: int

    @property
    def sparse(self) -> bool:
        """Whether some head read less than everything."""
        return self.budget != DENSE and self.fallback == Fallback.NONE


class Correction(NamedTuple):
    """What cache correction did for a request before one of its decode steps.

    Attributes:
        tokens: decoded tokens run again.
        entries: KV entries read for it; they are in the step's `attended`.
        seconds: the request's share of the time.
    """

    tokens: int
    entries: int
    seconds: float


class Times(NamedTuple):
    """Seconds of an answer, as SGLang's own clock has them; None where SGLang runs without metrics.

    Attributes:
        queue: wait before the prefill.
        decode: from the end of the prefill to the end of the choice, added up over the choices that decoded.
        engine: from the request's arrival to the end of its last choice.
    """

    queue: float | None = None
    decode: float | None = None
    engine: float | None = None

    @classmethod
    def of(cls, metas: Sequence[Mapping[str, Any]]) -> Times:
        """Reads the times out of the last `meta_info` of each choice."""
        first = metas[0]
        decode = [
            meta["request_finished_ts"] - meta["prefill_finished_time"]
            for meta in metas
            if meta.get("completion_tokens", 0) > 1 and {"request_finished_ts", "prefill_finished_time"} <= meta.keys()
        ]
        ends = [meta["request_finished_ts"] for meta in metas if "request_finished_ts" in meta]
        known = len(ends) == len(metas) and "request_received_ts" in first
        return cls(
            queue=first.get("queue_time"),
            decode=sum(decode) if decode else None,
            engine=max(ends) - first["request_received_ts"] if known else None,
        )


def summarise(
    choices: Sequence[Iterable[Step | None]], spec: RowSpec, context_tokens: int, times: Times
) -> dict[str, Any]:
    """Adds up the steps of an answer's choices.

    Args:
        choices: for each choice its steps, one an output token; None for a token that came out of a prefill. Behind
            a step's own numbers stand those of a correction before it.
        spec: what the request resolved to.
        context_tokens: prompt and answer, of the longest choice.
        times: what the answer took.

    Returns:
        The object `lychee` of an answer.
    """
    # a step that crossed a process border is a plain tuple
    rows: list[tuple[Any, ...]] = [tuple(step) for choice in choices for step in choice if step is not None]
    steps = [Step(*row[: len(Step._fields)]) for row in rows]
    corrections = [Correction(*row[len(Step._fields) :]) for row in rows if len(row) > len(Step._fields)]
    recalls = [s.recall for s in steps if s.recall is not None]
    attended, dense = sum(s.attended for s in steps), sum(s.dense_equivalent for s in steps)
    fallbacks = [s.fallback for s in steps if s.fallback != Fallback.NONE]
    bounded = spec.budget > 0 or spec.budget == DENSE
    correction = {
        "cache_correction": spec.cache_correction,
        "corrected_tokens": sum(c.tokens for c in corrections),
        "correction_seconds": sum(c.seconds for c in corrections),
    }
    rival = {"policy": spec.policy.name.lower(), "realisable": spec.policy.realisable}
    return {
        "budget": ("dense" if spec.budget == DENSE else spec.budget) if bounded else None,
        "mode": None if spec.budget == DENSE else MODE_NAMES[spec.mode],
        "value": spec.value or None,
        "context_tokens": context_tokens,
        "attended_tokens": attended,
        "dense_tokens": dense,
        "decode_steps": len(steps),
        "sparse_steps": sum(s.sparse for s in steps),
        "attended_fraction": attended / dense if dense else None,
        "recall": sum(recalls) / len(recalls) if recalls else None,
        "recall_steps": len(recalls),
        "dense_fallback": FALLBACK_NAMES[Fallback(fallbacks[-1])] if fallbacks else None,
        "mean_batch": sum(s.batch for s in steps) / len(steps) if steps else None,
        "queue_seconds": times.queue,
        "decode_seconds": times.decode,
        "engine_seconds": times.engine,
        **({} if spec.policy is Policy.PLAN else rival),
        **(correction if spec.cache_correction else {}),
    }


def combine(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds up the summaries of several requests that made one answer.

    Args:
        summaries: in the order in which they ran, at least one. Budget, mode and value are the last one's.
    """
    last = dict(summaries[-1])
    for key in ("attended_tokens", "dense_tokens", "decode_steps", "sparse_steps", "recall_steps"):
        last[key] = sum(summary[key] for summary in summaries)
    for key in ("corrected_tokens", "correction_seconds"):
        if key in last:  # all of them, or none: the budget is one
            last[key] = sum(summary.get(key, 0) for summary in summaries)
    last["attended_fraction"] = last["attended_tokens"] / last["dense_tokens"] if last["dense_tokens"] else None
    last["context_tokens"] = max(summary["context_tokens"] for summary in summaries)
    last["recall"] = _mean(summaries, "recall", "recall_steps")
    last["mean_batch"] = _mean(summaries, "mean_batch", "decode_steps")
    fallbacks = [summary["dense_fallback"] for summary in summaries if summary["dense_fallback"] is not None]
    last["dense_fallback"] = fallbacks[-1] if fallbacks else None
    for key in ("queue_seconds", "decode_seconds", "engine_seconds"):
        known = [summary[key] for summary in summaries if summary[key] is not None]
        last[key] = sum(known) if known else None
    return last


def _mean(summaries: Sequence[Mapping[str, Any]], key: str, weight: str) -> float | None:
    pairs = [(summary[key], summary[weight]) for summary in summaries if summary[key] is not None and summary[weight]]
    return sum(value * times for value, times in pairs) / sum(times for _, times in pairs) if pairs else None
