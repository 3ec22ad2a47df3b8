"""Scores of variants, cell by cell, with intervals. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lychee_sgl.heads.evaluate.store import Answers

Z95 = 1.959963984540054


def wilson(right: int, asked: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Args:
        right: successes.
        asked: trials, at least one.
        z: normal quantile; the default is for 95%.

    Returns:
        Low and high end in [0, 1].

    Raises:
        ValueError: there is no trial, or more successes than trials.
    """
    if not 0 <= right <= asked or asked == 0:
        raise ValueError(f"right is {right} of {asked}; allowed: 0 to {asked} of at least one")
    share, shrink = right / asked, 1 + z * z / asked
    middle = (share + z * z / (2 * asked)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A variant over some questions.

    Attributes:
        asked: questions.
        right: those with every number found.
        found: mean share of the numbers found.
        same: share of replies that are the dense one, token for token.
        lost: the dense model is right and the variant is not.
        gained: the other way round.
        recall: mean attention-mass recall, or None.
    """

    asked: int
    right: int
    found: float
    same: float
    lost: int
    gained: int
    recall: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values, with Wilson's interval of the share that is right."""
        low, high = wilson(self.right, self.asked)
        return {
            "asked": self.asked, "right": self.right, "share": round(self.right / self.asked, 4),
            "low": round(low, 4), "high": round(high, 4), "found": round(self.found, 4), "same": round(self.same, 4),
            "lost": self.lost, "gained": self.gained,
            "recall": None if self.recall is None else round(self.recall, 4),
        }  # fmt: skip


def score(answers: Answers, questions: Iterable[str], variant: str, dense: str = "dense") -> Score | None:
    """A variant's score over those of the questions that it and the dense model have answered; None: not one."""
    rows = [
        (answers.questions[key]["wanted"], answers.answers[key][variant], answers.answers[key][dense])
        for key in questions
        if variant in answers.answers.get(key, {}) and dense in answers.answers[key]
    ]
    if not rows:
        return None
    right = [one.found == wanted for wanted, one, _ in rows]
    base = [other.found == wanted for wanted, _, other in rows]
    recalls = [one.recall for _, one, _ in rows if one.recall is not None]
    return Score(
        asked=len(rows),
        right=sum(right),
        found=sum(one.found / wanted for wanted, one, _ in rows) / len(rows),
        same=sum(one.same for _, one, _ in rows) / len(rows),
        lost=sum(was and not now for now, was in zip(right, base, strict=True)),
        gained=sum(now and not was for now, was in zip(right, base, strict=True)),
        recall=sum(recalls) / len(recalls) if recalls else None,
    )


def score_table(answers: Answers, variants: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Every variant's score in every cell, and over all cells together under `all`."""
    cells: dict[str, list[str]] = {}
    for key in answers.questions:
        cells.setdefault(key.partition("/")[0], []).append(key)
    cells["all"] = list(answers.questions)
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for variant in variants:
        told = {cell: score(answers, keys, variant) for cell, keys in cells.items()}
        table[variant] = {cell: one.as_dict() for cell, one in told.items() if one is not None}
    return table


def versus(answers: Answers, variant: str, other: str) -> tuple[int, int, float] | None:
    """Two variants on the same questions: McNemar's exact test.

    Args:
        answers: of both.
        variant: one.
        other: the other.

    Returns:
        Questions that only `variant` has right, those that only `other` has right, and the two-sided p-value of a
        fair coin that decided between the two; None where no question was answered by both.
    """
    rows = [
        (answers.answers[key][variant].found == about["wanted"], answers.answers[key][other].found == about["wanted"])
        for key, about in answers.questions.items()
        if {variant, other} <= answers.answers.get(key, {}).keys()
    ]
    if not rows:
        return None
    won, lost = sum(one and not two for one, two in rows), sum(two and not one for one, two in rows)
    tosses = won + lost
    tail = sum(math.comb(tosses, heads) for heads in range(min(won, lost) + 1)) / 2**tosses
    return won, lost, min(1.0, 2 * tail)
