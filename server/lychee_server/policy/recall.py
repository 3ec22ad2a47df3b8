"""Holds an asked recall: which budget each kind of prompt needs for it now, learnt from the audits in answers."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lychee_server.policy.curve import MOST_SHARE, RecallCurve, reach_of, share_at

if TYPE_CHECKING:
    from lychee_server.policy.schema import RecallHold

_LEAST_BUCKET = 10  # prompts up to 1023 tokens share one bucket
_MOST_BUCKET = 21  # and those from 1,048,576 on
_PATIENCE = 3  # answers between two moves of a budget
_DEAD_ZONE_DOWN = 0.05  # in reach, where 0.1 is a tenth of a small budget
_DEAD_ZONE_UP = 0.03
_STEP_DOWN = 0.9
_STEP_UP = 0.6
_START_LEAST = 0.5  # of the context: nothing begins with less
_START_SLACK = 8.0  # and a recall that may miss a part begins with all of the context but so many times that part
_HELD_RECALLS = 32  # in one bucket; the one that nobody has asked for longest is forgotten
_MOST_BUCKETS = 256
_LENGTH_MEMORY = 32


def bucket_of(prompt_tokens: int) -> int:
    """Return the bucket of a prompt's length: its number of binary digits, within limits."""
    return min(max(prompt_tokens.bit_length(), _LEAST_BUCKET), _MOST_BUCKET)


def bucket_label(bucket: int) -> str:
    """Return a bucket's prompt lengths, such as `4096-8191`."""
    low = 0 if bucket == _LEAST_BUCKET else 2 ** (bucket - 1)
    return f"{low}+" if bucket == _MOST_BUCKET else f"{low}-{2**bucket - 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What one answer says of recall.

    Attributes:
        prompt_tokens: length of the prompt.
        answer_tokens: length of the answer, of one choice.
        budget: tokens that its sets held.
        recall: mean of its audited steps.
    """

    prompt_tokens: int
    answer_tokens: int
    budget: int
    recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A budget for a recall, and what it rests on.

    Attributes:
        budget: tokens.
        share: of the context.
        bucket: the prompt lengths that it is held for.
        answers: audited answers to such prompts.
    """

    budget: int
    share: float
    bucket: str
    answers: int


@dataclass(slots=True)
class _Held:
    """A recall that somebody has asked for: the reach that holds it, and when that moved (in answers)."""

    reach: float
    moved_at: int = 0


@dataclass(slots=True)
class _Bucket:
    number: int
    curve: RecallCurve
    half_answer: float = 0.0
    held: OrderedDict[float, _Held] = field(default_factory=OrderedDict)

    @property
    def context(self) -> float:
        """A usual context: the geometric middle of the prompts, and half an answer."""
        return 2 ** (self.number - 0.5) + self.half_answer


class RecallKeeper:
    """Budgets by model and head plan, bucket and asked recall.

    The estimate of the curve does the work; the rest keeps a budget from moving without need. It moves after
    `_PATIENCE` new answers at the earliest, only when the estimate has left a dead zone around it, and by a bounded
    step. Answers that are still under way cannot make it overshoot: each reports what its own budget has brought,
    whatever is held by then.
    """

    def __init__(self, settings: RecallHold) -> None:
        self._settings = settings
        self._buckets: OrderedDict[tuple[str, int], _Bucket] = OrderedDict()

    def reconfigure(self, settings: RecallHold) -> None:
        """Go on with other settings; what has been learnt stays."""
        self._settings = settings
        for bucket in self._buckets.values():
            bucket.curve.memory = settings.memory

    def hold(self, served: str, prompt_tokens: int, recall: float, *, dry: bool = False) -> Holding:
        """Return the budget that holds a recall for a prompt, and move what is held if it is time to.

        Args:
            served: model and head plan, as one name.
            prompt_tokens: length of the prompt.
            recall: asked for; told apart to three digits.
            dry: only look: nothing is moved, and nothing is begun.
        """
        number, recall = bucket_of(prompt_tokens), round(recall, 3)
        if dry:
            bucket = self._buckets.get((served, number)) or _Bucket(number, RecallCurve(self._settings.memory))
            held = bucket.held.get(recall)
            reach = held.reach if held else self._first(bucket, recall)
        else:
            bucket = self._bucket(served, number)
            reach = self._move(bucket, recall)
        context = max(1, prompt_tokens) + bucket.half_answer  # an empty text may have no token at all
        budget = max(self._settings.floor, math.ceil(share_at(reach, context) * context))
        return Holding(budget=budget, share=budget / context, bucket=bucket_label(number), answers=bucket.curve.answers)

    def expected_context(self, served: str, prompt_tokens: int) -> int:
        """Return the context in the middle of an answer, as answers to such prompts have been."""
        bucket = self._buckets.get((served, bucket_of(prompt_tokens)))
        return max(1, prompt_tokens + round(bucket.half_answer if bucket else 0))

    def observe(self, served: str, audit: Audit) -> None:
        """Learn from an answer that ran sparse with a fixed number of tokens in its sets."""
        bucket = self._bucket(served, bucket_of(audit.prompt_tokens))
        half = audit.answer_tokens / 2
        bucket.curve.observe(audit.budget, audit.prompt_tokens + half, audit.recall)
        bucket.half_answer += (half - bucket.half_answer) / min(bucket.curve.answers, _LENGTH_MEMORY)

    def _bucket(self, served: str, number: int) -> _Bucket:
        key = (served, number)
        bucket = self._buckets.setdefault(key, _Bucket(number, RecallCurve(self._settings.memory)))
        self._buckets.move_to_end(key)
        while len(self._buckets) > _MOST_BUCKETS:
            self._buckets.popitem(last=False)
        return bucket

    def _first(self, bucket: _Bucket, recall: float) -> float:
        """Begin large, or at what the answers to other requests have shown to be enough."""
        if bucket.curve.answers >= _PATIENCE:
            return self._wanted(bucket, recall)
        share = min(max(1 - _START_SLACK * (1 - recall), _START_LEAST), MOST_SHARE)
        return reach_of(share * bucket.context, bucket.context)

    def _wanted(self, bucket: _Bucket, recall: float) -> float:
        return bucket.curve.smallest(recall, self._settings.share, bucket.context, self._settings.floor)

    def _move(self, bucket: _Bucket, recall: float) -> float:
        held, answers = bucket.held.get(recall), bucket.curve.answers
        if held is None:
            held = bucket.held[recall] = _Held(self._first(bucket, recall), answers)
            while len(bucket.held) > _HELD_RECALLS:
                bucket.held.popitem(last=False)
        bucket.held.move_to_end(recall)
        if answers - held.moved_at >= _PATIENCE:
            change = self._wanted(bucket, recall) - held.reach
            if not -_DEAD_ZONE_DOWN < change < _DEAD_ZONE_UP:
                held.reach += min(max(change, -_STEP_DOWN), _STEP_UP)
            held.moved_at = answers
        return held.reach

    def state(self) -> list[dict[str, Any]]:
        """Return what each bucket knows and holds, for people to read; budgets are for its middle length."""
        return [
            {
                "served": served,
                "prompt_tokens": bucket_label(number),
                "audited_answers": bucket.curve.answers,
                "held": [
                    {"min_recall": recall, "budget": math.ceil(share_at(held.reach, context) * context)}
                    for recall, held in sorted(bucket.held.items())
                ],
                "reached": list(self._reached(bucket)),
            }
            for (served, number), bucket in sorted(self._buckets.items())
            for context in (bucket.context,)
        ]

    def _reached(self, bucket: _Bucket) -> list[dict[str, float]]:
        context, shown = bucket.context, []
        budget = float(max(64, self._settings.floor))
        while budget < MOST_SHARE * context:
            estimate = bucket.curve.at(reach_of(budget, context), context)
            if estimate.answers >= 1:
                row = {"budget": budget, "recall": estimate.recall(0.5, caution=0)}
                row["reached_by_share"] = estimate.recall(self._settings.share)
                shown.append({**{k: round(v, 4) for k, v in row.items()}, "answers": round(estimate.answers, 1)})
            budget *= 2
        return shown
