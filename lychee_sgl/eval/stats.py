"""Intervals of 95% (DESIGN.md section 10)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import stats

from lychee_sgl.heads.evaluate.scores import Z95, wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES: Final = 4000
SEED: Final = 20250101


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        value: the mean.
        low: low end; None where one sample or none allows no interval.
        high: high end.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def as_list(self) -> list[float | None]:
        """Value, low and high, rounded, for JSON."""
        return [None if x is None else round(x, 5) + 0.0 for x in (self.value, self.low, self.high)]


def share(scores: Sequence[float]) -> Estimate:
    """Wilson's score interval of a share.

    Args:
        scores: each 0 or 1, at least one.

    Raises:
        ValueError: there is none, or another number.
    """
    if not scores or not is_binary(scores):
        raise ValueError("scores: allowed are zeros and ones, at least one")
    right = round(sum(scores))
    return Estimate(right / len(scores), *wilson(right, len(scores)))


def is_binary(scores: Sequence[float]) -> bool:
    """Whether all scores are right or wrong."""
    return all(score in (0.0, 1.0) for score in scores)


def mean(values: Sequence[float]) -> Estimate:
    """A mean, bootstrapped (percentiles, a fixed seed).

    Args:
        values: at least one; of a single one there is no interval.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("values: allowed is at least one")
    array = np.asarray(values, dtype=float)
    value = float(array.mean())
    if len(array) < 2:
        return Estimate(value)
    found = stats.bootstrap(
        (array,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(SEED)
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, their intervals combined by the variances they imply at either end.

    This is MOVER (Zou and Donner, 2008). It keeps what each task's own interval knows: that all of a few samples were
    right says less than that all of many were.

    Raises:
        ValueError: there is none.
    """
    if not estimates:
        raise ValueError("estimates: allowed is at least one")
    value = sum(one.value for one in estimates) / len(estimates)
    below = above = 0.0
    for one in estimates:
        if one.low is None or one.high is None:
            return Estimate(value)
        below += (one.value - one.low) ** 2
        above += (one.high - one.value) ** 2
    return Estimate(value, value - math.sqrt(below) / len(estimates), value + math.sqrt(above) / len(estimates))


def scores_mean(scores: Sequence[float]) -> Estimate:
    """Mean of one task's scores: Wilson where all are right or wrong, else bootstrap."""
    return share(scores) if is_binary(scores) else mean(scores)


def difference(new: Sequence[float], old: Sequence[float]) -> Estimate:
    """The mean of paired differences, new less old.

    Where all scores are right or wrong, after Agresti and Min (2005): half a pair is added to each of the four cells
    of the table of both, so that the interval does not collapse where no pair differs. Else bootstrap.

    Raises:
        ValueError: the lengths differ, or there is no pair.
    """
    pairs = list(zip(new, old, strict=True))
    if not pairs:
        raise ValueError("pairs: allowed is at least one")
    if not (is_binary(new) and is_binary(old)):
        return mean([a - b for a, b in pairs])
    gained = sum(a > b for a, b in pairs) + 0.5
    lost = sum(a < b for a, b in pairs) + 0.5
    count = len(pairs) + 2
    centre = (gained - lost) / count
    half = Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
    value = (gained - lost) / len(pairs)
    return Estimate(value, max(-1.0, centre - half), min(1.0, centre + half))
