"""What answers at held recalls and at fixed budgets say: how well the recall is held, and what it costs."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

PART = 0.9
"""The part of a bucket's answers that a held recall is promised to (the gateway's default)."""

_RUNNING = 20  # answers in the plot's running line


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer.

    Attributes:
        question: its number; the same in all lanes.
        recall_asked: what the gateway had to hold, or None.
        budget_asked: the fixed budget, or None.
        prompt_tokens: length of the prompt.
        answer_tokens: length of the answer.
        budget: in force.
        recall: mean of the audited steps; None: none ran sparse.
        attended_fraction: KV entries read, over those of dense decoding.
    """

    question: int
    recall_asked: float | None
    budget_asked: int | None
    prompt_tokens: int
    answer_tokens: int
    budget: int | str | None
    recall: float | None
    attended_fraction: float | None


class Settings(Protocol):
    """What a report needs to know of the run."""

    @property
    def recalls(self) -> tuple[float, ...]:
        """The recalls that were asked for."""

    @property
    def budgets(self) -> tuple[int, ...]:
        """The fixed budgets."""

    @property
    def warm_up(self) -> int:
        """Answers of each bucket that count as warming up."""


def bucket(prompt_tokens: int) -> str:
    """Return a prompt's bucket: one for each doubling of the length."""
    digits = max(prompt_tokens.bit_length(), 1)
    return f"{2 ** (digits - 1)}-{2**digits - 1}"


def reached(recalls: Iterable[float]) -> float:
    """Return the recall that nine in ten answers reach."""
    ordered = sorted(recalls)
    return ordered[math.floor((1 - PART) * len(ordered) + 1e-9)]


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Add up answers; those without an audit say nothing and are only counted."""
    audited = [answer for answer in answers if answer.recall is not None]
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in audited:
        groups[bucket(answer.prompt_tokens)].append(answer)
    buckets = {
        name: {
            "answers": len(group),
            "mean_recall": fmean(_recalls(group)),
            "reached": reached(_recalls(group)),
            "worst": min(_recalls(group)),
            "mean_budget": fmean(float(a.budget) for a in group if isinstance(a.budget, int)),
        }
        for name, group in sorted(groups.items(), key=lambda each: int(each[0].split("-")[0]))
    }
    return {
        "answers": len(answers),
        "audited": len(audited),
        "mean_recall": fmean(_recalls(audited)),
        "reached": reached(_recalls(audited)),
        "worst_answer": min(_recalls(audited)),
        "worst_bucket": min(group["reached"] for group in buckets.values()),
        "attended_fraction": fmean(a.attended_fraction for a in answers if a.attended_fraction is not None),
        "buckets": buckets,
    }


def _recalls(answers: Iterable[Answer]) -> list[float]:
    return [answer.recall for answer in answers if answer.recall is not None]


def settled(answers: Sequence[Answer], warm_up: int) -> list[Answer]:
    """Leave out the first answers of each bucket."""
    seen: dict[str, int] = defaultdict(int)
    found = []
    for answer in sorted(answers, key=lambda each: each.question):
        name = bucket(answer.prompt_tokens)
        seen[name] += 1
        if seen[name] > warm_up:
            found.append(answer)
    return found


def same_worst_case(fixed: Sequence[tuple[int, dict[str, Any]]], key: str, value: float) -> dict[str, float] | None:
    """Find the fixed budget with a given worst case, between those that were measured.

    Args:
        fixed: budgets, rising, with their summaries over the same questions.
        key: which worst case, a field of the summary.
        value: of that field.

    Returns:
        The budget and what it attends, on the line between its neighbours (the missing recall and the budget as
        logarithms); None where no measured budgets are around it.
    """
    best = 0.0
    line: list[tuple[float, float, float]] = []
    for budget, found in fixed:
        best = max(best, found[key])  # a larger budget is never worse; where noise says so, it counts as no better
        line.append((math.log(max(1 - best, 1e-6)), math.log(budget), found["attended_fraction"]))
    wanted = math.log(max(1 - value, 1e-6))
    for (y0, x0, a0), (y1, x1, a1) in pairwise(line):
        if y0 >= wanted >= y1:
            share = (y0 - wanted) / (y0 - y1) if y0 > y1 else 0.0
            return {"budget": math.exp(x0 + share * (x1 - x0)), "attended_fraction": a0 + share * (a1 - a0)}
    return None


def report(answers: Sequence[Answer], settings: Settings) -> dict[str, Any]:
    """Compare each held recall with the fixed budgets over the same questions, in all and when it has settled."""
    fixed = {b: [a for a in answers if a.budget_asked == b] for b in sorted(settings.budgets)}
    targets = []
    for recall in settings.recalls:
        lane = sorted((a for a in answers if a.recall_asked == recall), key=lambda a: a.question)
        target: dict[str, Any] = {"min_recall": recall}
        for name, part in (("whole", lane), ("settled", settled(lane, settings.warm_up))):
            if _recalls(part):
                target[name] = _compared(recall, part, fixed)
        target["answers"] = [
            [a.question, a.prompt_tokens, a.budget, _short(a.recall), _short(a.attended_fraction)] for a in lane
        ]
        targets.append(target)
    return {"targets": targets, "fixed": {str(b): summary(each) for b, each in fixed.items() if _recalls(each)}}


def _compared(recall: float, part: Sequence[Answer], fixed: dict[int, list[Answer]]) -> dict[str, Any]:
    asked = {answer.question for answer in part}
    beside = [(b, [a for a in each if a.question in asked]) for b, each in fixed.items()]
    summaries = [(b, summary(each)) for b, each in beside if _recalls(each)]
    own = summary(part)
    same = {key: same_worst_case(summaries, key, own[key]) for key in ("worst_bucket", "worst_answer")}
    return {**own, "off_by": own["worst_bucket"] - recall, "same_worst_case": same}


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw the run as a PNG: recall as it was held, and what it costs beside fixed budgets."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    colours = [f"C{index}" for index in range(len(record["targets"]))]
    for target, colour in zip(record["targets"], colours, strict=True):
        rows = [row for row in target["answers"] if row[3] is not None]
        left.plot([row[0] for row in rows], [row[3] for row in rows], ".", color=colour, alpha=0.35, markersize=4)
        running = [
            (rows[i][0], reached(row[3] for row in rows[max(0, i - _RUNNING + 1) : i + 1])) for i in range(len(rows))
        ]
        left.plot(*zip(*running, strict=True), color=colour, label=f"asked {target['min_recall']:g}")
        left.axhspan(target["min_recall"] - 0.01, target["min_recall"] + 0.01, color=colour, alpha=0.12, linewidth=0)
    left.set(
        xlabel="question", ylabel="recall", title=f"dots: answers; lines: reached by 9 in 10 of the last {_RUNNING}"
    )
    left.legend(loc="lower right")
    _cost(right, record, colours)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _cost(axes: Any, record: dict[str, Any], colours: Sequence[str]) -> None:
    fixed = sorted(record["fixed"].items(), key=lambda each: int(each[0]))
    places = [(each["attended_fraction"], each["worst_bucket"]) for _, each in fixed]
    axes.plot(*zip(*places, strict=True), "o-", color="0.5", label="fixed budgets")
    for (budget, _), place in zip(fixed, places, strict=True):
        axes.annotate(budget, place, textcoords="offset points", xytext=(5, -10), fontsize=8, color="0.4")
    for target, colour in zip(record["targets"], colours, strict=True):
        for name, marker in (("whole", "s"), ("settled", "*")):
            if name in target:
                found = target[name]
                label = f"asked {target['min_recall']:g}, {name}"
                axes.plot(
                    found["attended_fraction"], found["worst_bucket"], marker, color=colour, markersize=10, label=label
                )
    axes.set(xlabel="attended fraction", ylabel="recall reached by 9 in 10 in the worst bucket", title="cost")
    axes.legend(loc="lower right", fontsize=8)
