"""Intervals against published values and by hand."""

from __future__ import annotations

import math

import pytest

from lychee_sgl.eval.stats import Estimate, difference, mean, mean_of, scores_mean, share


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_values(right: int, asked: int, low: float, high: float) -> None:
    """Newcombe (1998), table I, method 3."""
    found = share([1.0] * right + [0.0] * (asked - right))
    assert found.value == pytest.approx(right / asked)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_a_share_of_other_numbers_is_refused() -> None:
    for scores in ([], [0.5, 1.0]):
        with pytest.raises(ValueError, match="allowed are zeros and ones, at least one"):
            share(scores)


def test_a_bootstrapped_mean_has_about_the_normal_interval_and_the_same_each_time() -> None:
    values = [((i * 37) % 101) / 100 for i in range(101)]  # all hundredths from 0 to 1
    spread = math.sqrt(sum((v - 0.5) ** 2 for v in values) / 100) / math.sqrt(101)
    found = mean(values)
    assert found == mean(values)
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5 - 1.96 * spread, abs=0.006)
    assert found.high == pytest.approx(0.5 + 1.96 * spread, abs=0.006)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert mean([0.3]) == Estimate(0.3)
    with pytest.raises(ValueError, match="at least one"):
        mean([])


def test_a_task_takes_the_interval_that_fits_its_scores() -> None:
    assert scores_mean([1.0, 0.0, 1.0]) == share([1.0, 0.0, 1.0])
    assert scores_mean([0.25, 0.5, 1.0]) == mean([0.25, 0.5, 1.0])


def test_paired_differences_after_agresti_and_min_by_hand() -> None:
    # 10 pairs, 1 gained and 4 lost: cells 1.5 and 4.5 of 12; centre -3/12, variance (6 - 9/12) / 144
    new = [1.0] + [0.0] * 4 + [1.0] * 5
    old = [0.0] + [1.0] * 4 + [1.0] * 5
    found = difference(new, old)
    half = 1.959964 * math.sqrt(6 - 0.75) / 12
    assert found.value == pytest.approx(-0.3)
    assert (found.low, found.high) == (pytest.approx(-0.25 - half), pytest.approx(-0.25 + half))


def test_no_difference_at_all_still_has_a_width_that_shrinks_with_the_pairs() -> None:
    few, many = (difference([1.0] * count, [1.0] * count) for count in (5, 500))
    for found, count in ((few, 5), (many, 500)):
        assert found.value == 0.0
        assert found.high == pytest.approx(1.959964 / (count + 2))
        assert found.low == -found.high  # type: ignore[operator]


def test_partial_scores_are_bootstrapped_and_pairs_must_match() -> None:
    found = difference([0.5, 0.75, 1.0, 0.25], [0.5, 0.5, 0.5, 0.5])
    assert found.value == pytest.approx(0.125)
    assert found.low is not None
    assert -0.25 <= found.low < 0.125
    with pytest.raises(ValueError, match="argument 2"):
        difference([1.0], [1.0, 0.0])


def test_a_mean_over_tasks_combines_their_intervals_by_hand() -> None:
    found = mean_of([Estimate(0.8, 0.5, 0.9), Estimate(0.4, 0.0, 0.7)])
    assert found.value == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - math.sqrt(0.3**2 + 0.4**2) / 2)
    assert found.high == pytest.approx(0.6 + math.sqrt(0.1**2 + 0.3**2) / 2)
    assert mean_of([Estimate(0.8, 0.5, 0.9), Estimate(0.4)]) == Estimate(pytest.approx(0.6))
    with pytest.raises(ValueError, match="at least one"):
        mean_of([])
