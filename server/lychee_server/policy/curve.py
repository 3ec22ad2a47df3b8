"""How recall depends on the budget: an estimate out of audited answers, with its uncertainty.

Two variables make the relation nearly straight, and nearly the same for contexts of different lengths. One is the
*reach* of a budget: the log-odds of the share of the context that a set may hold, plus three quarters of the logarithm
of the context (a small budget that holds the same recall grows with the fourth root of the context). The other is the
logarithm of the recall that is missing. Around each point a line is fitted by least squares; near answers count more
than far ones, and new ones more than old ones. Where answers are few the estimate leans on chance: a set of tokens
that nobody has chosen holds as much of the attention as its share of the context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

MOST_SHARE = 0.95
"""Above it a budget saves nothing, and a dense answer could not be audited."""

_CONTEXT_EXPONENT = 0.75
_LEAST_MISSING = 1e-4
_STEP = 0.1  # between the points where a budget is looked for
_CELL = 0.2  # width of a cell; all widths are in reach
_BANDWIDTH = 0.6  # how far an answer speaks
_SLOPE = 0.6  # without evidence; measured plans have 0.5 to 0.9
_SLOPE_WEIGHT = 1.0  # of that slope, as so much spread of answers
_CHANCE_WEIGHT = 0.5  # in answers
_SPREAD = 0.2  # of single answers without evidence, in the logarithm of what is missing
_SPREAD_WEIGHT = 4.0  # of that spread, in answers
_CAUTION = 0.7  # standard errors by which the estimate is taken for the worse


def reach_of(budget: float, context: float) -> float:
    """Return a budget's reach in a context of so many tokens; budgets count up to 99.9% of it."""
    share = min(budget / context, 0.999)
    return math.log(share / (1 - share)) + _CONTEXT_EXPONENT * math.log(context)


def share_at(reach: float, context: float) -> float:
    """Return the share of a context that has this reach, `MOST_SHARE` at most."""
    return min(MOST_SHARE, 1 / (1 + math.exp(_CONTEXT_EXPONENT * math.log(context) - reach)))


@dataclass(slots=True)
class _Cell:
    """Sums over the answers of one cell."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.weight += 1
        self.x += x
        self.y += y
        self.xx += x * x
        self.xy += x * y
        self.yy += y * y

    def fade(self, factor: float) -> None:
        self.weight *= factor
        self.x *= factor
        self.y *= factor
        self.xx *= factor
        self.xy *= factor
        self.yy *= factor

    def add_weighted(self, other: _Cell, weight: float) -> None:
        self.weight += weight * other.weight
        self.x += weight * other.x
        self.y += weight * other.y
        self.xx += weight * other.xx
        self.xy += weight * other.xy
        self.yy += weight * other.yy


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The missing recall at one reach, as logarithms.

    Attributes:
        mean: of the middle answer.
        error: standard error of that mean.
        spread: standard deviation of single answers around it.
        answers: how many speak for it.
    """

    mean: float
    error: float
    spread: float
    answers: float

    def recall(self, part: float, caution: float = _CAUTION) -> float:
        """Return the recall that this part of the answers reaches, for the worse by `caution` standard errors."""
        missing = self.mean + NormalDist().inv_cdf(part) * self.spread + caution * self.error
        return 1 - math.exp(min(missing, 0.0))


@dataclass(slots=True)
class RecallCurve:
    """What the answers to one kind of prompt have shown.

    Attributes:
        memory: answers after which an old one counts for a third.
        answers: audited answers so far.
    """

    memory: float
    answers: int = 0
    _cells: dict[int, _Cell] = field(default_factory=dict)

    def observe(self, budget: float, context: float, recall: float) -> None:
        """Take note of an answer's recall, decoded with such sets in a context of that length."""
        x = reach_of(budget, context)
        for cell in self._cells.values():
            cell.fade(1 - 1 / self.memory)
        self._cells.setdefault(round(x / _CELL), _Cell()).add(x, math.log(max(1 - recall, _LEAST_MISSING)))
        self.answers += 1

    def at(self, reach: float, context: float) -> Estimate:
        """Return the estimate for budgets of this reach; the context matters for what chance would hold."""
        near = _Cell()
        for cell in self._cells.values():
            if cell.weight > 1e-6:
                distance = (cell.x / cell.weight - reach) / _BANDWIDTH
                near.add_weighted(cell, math.exp(-0.5 * distance * distance))
        chance = math.log(1 - share_at(reach, context))
        if near.weight < 1e-6:
            return Estimate(mean=chance, error=0.0, spread=0.0, answers=0.0)
        x, y = near.x / near.weight, near.y / near.weight
        width = max(0.0, near.xx - near.weight * x * x)
        joint = near.xy - near.weight * x * y
        slope = max(0.0, (_SLOPE_WEIGHT * _SLOPE - joint) / (width + _SLOPE_WEIGHT))
        rest = max(0.0, near.yy - near.weight * y * y + 2 * slope * joint + slope * slope * width)
        variance = (_SPREAD_WEIGHT * _SPREAD**2 + rest) / (_SPREAD_WEIGHT + near.weight)
        weight = near.weight + _CHANCE_WEIGHT
        return Estimate(
            mean=(near.weight * (y - slope * (reach - x)) + _CHANCE_WEIGHT * chance) / weight,
            error=math.sqrt(variance * (1 / weight + (reach - x) ** 2 / (width + _SLOPE_WEIGHT))),
            spread=math.sqrt(variance),
            answers=near.weight,
        )

    def smallest(self, recall: float, part: float, context: float, floor: float) -> float:
        """Return the smallest reach with which this part of the answers gets a recall.

        Recall grows with the budget, so what is reached with a small one is reached with all larger ones: the first
        crossing is the answer, whatever the estimate says of the points above.

        Args:
            recall: to be reached.
            part: of the answers.
            context: a usual one, in tokens.
            floor: smallest budget that is looked at.

        Returns:
            A reach; that of `MOST_SHARE` where no smaller one is known to do.
        """
        low, high = reach_of(min(floor, MOST_SHARE * context), context), reach_of(MOST_SHARE * context, context)
        below = 0.0
        for step in range(math.ceil((high - low) / _STEP)):
            here = self.at(low + step * _STEP, context).recall(part)
            if here >= recall:
                between = (here - recall) / (here - below) if step else 0.0
                return low + (step - between) * _STEP
            below = here
        return high
