"""The algebra of gated rewards, by hand and as properties."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_sgl.rewards import Gate, GatedRewards, Level, advantages, group_advantages

TWO = GatedRewards((Level("outcome", Gate(0.5)), Level("format", weight=0.1)))
THREE = GatedRewards((Level("a", Gate(1.0)), Level("b", Gate(2.0), weight=2.0), Level("c", weight=3.0)))

whole = st.integers(-4, 4).map(float)  # sums of these are exact
STEPS = st.lists(st.dictionaries(st.sampled_from("abc"), whole), max_size=6)
few = settings(max_examples=40)
GATES = st.none() | st.builds(Gate, whole, st.booleans())


@st.composite
def chains(draw: st.DrawFn) -> GatedRewards:
    weights = st.integers(0, 3).map(float)
    return GatedRewards(tuple(Level(name, draw(GATES), draw(weights)) for name in draw(st.permutations("abc"))))


@pytest.mark.parametrize(
    ("steps", "total", "counted", "closed_by"),
    [
        ([], 0.0, ("outcome",), "outcome"),
        ([{}, {}], 0.0, ("outcome",), "outcome"),
        ([{"format": 1.0}, {"format": 1.0}], 0.0, ("outcome",), "outcome"),
        ([{"format": 1.0}, {"outcome": 0.25}], 0.25, ("outcome",), "outcome"),
        ([{"format": 1.0}, {"outcome": 0.5}], 0.6, ("outcome", "format"), None),  # at equality the gate is open
        ([{"format": 1.0}, {"format": 1.0, "outcome": 1.0}], 1.2, ("outcome", "format"), None),
        ([{"outcome": 0.25}, {"outcome": 0.25}, {"format": 2.0}], 0.7, ("outcome", "format"), None),
    ],
)
def test_two_levels_by_hand(
    steps: list[dict[str, float]], total: float, counted: tuple[str, ...], closed_by: str | None
) -> None:
    account = TWO.account(steps)
    assert account.total == pytest.approx(total, abs=1e-12)
    assert account.counted == counted
    assert account.closed_by == closed_by


def test_strict_gates_are_closed_at_equality() -> None:
    strict = GatedRewards((Level("outcome", Gate(0.5, strict=True)), Level("format")))
    assert strict.total([{"outcome": 0.5, "format": 1.0}]) == 0.5
    assert strict.total([{"outcome": math.nextafter(0.5, 1), "format": 1.0}]) == 1.5


@pytest.mark.parametrize(
    ("values", "total"),
    [((0, 9, 9), 0), ((1, 1, 9), 1 + 2), ((1, 2, 9), 1 + 4 + 27), ((1, 2, -1), 1 + 4 - 3), ((5, 0, 9), 5)],
)
def test_three_levels_by_hand(values: tuple[float, ...], total: float) -> None:
    assert THREE.total([dict(zip("abc", map(float, values), strict=True))]) == total


def test_direct_accumulation_opens_every_gate() -> None:
    assert THREE.direct().total([{"a": 0.0, "b": 1.0, "c": 1.0}]) == 5.0
    assert THREE.direct().account([{"c": 1.0}]).closed_by is None


def test_returns_by_hand() -> None:
    steps = [{"format": 1.0}, {"format": 2.0}, {"outcome": 1.0}]
    assert TWO.returns(steps, discount=0.5) == pytest.approx([0.1 + 0.5 * (0.2 + 0.5), 0.2 + 0.5, 1.0])
    assert TWO.returns([{"format": 1.0}, {"outcome": 0.0}]) == [0.0, 0.0]
    assert TWO.returns([]) == []


@few
@given(chains(), STEPS)
def test_a_level_counts_exactly_when_every_higher_one_passes(
    chain: GatedRewards, steps: list[dict[str, float]]
) -> None:
    account = chain.account(steps)
    for place, level in enumerate(chain.levels):
        open_above = all(
            higher.gate is None or higher.gate.passes(sum(step.get(higher.name, 0.0) for step in steps))
            for higher in chain.levels[:place]
        )
        assert (level.name in account.counted) is open_above


@few
@given(chains(), STEPS)
def test_a_chain_is_its_first_level_and_behind_its_gate_the_rest(
    chain: GatedRewards, steps: list[dict[str, float]]
) -> None:
    def nested(levels: tuple[Level, ...]) -> Fraction:
        if not levels:
            return Fraction(0)
        value = sum(Fraction(step.get(levels[0].name, 0.0)) for step in steps)
        passes = levels[0].gate is None or levels[0].gate.passes(float(value))
        return Fraction(levels[0].weight) * value + (nested(levels[1:]) if passes else 0)

    assert chain.total(steps) == float(nested(chain.levels))


@few
@given(chains(), STEPS, st.randoms(use_true_random=False))
def test_the_order_of_steps_and_how_they_are_cut_up_change_no_total(
    chain: GatedRewards, steps: list[dict[str, float]], draw: "object"
) -> None:
    shuffled = steps[:]
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    apart = [{name: value} for step in steps for name, value in step.items()]
    assert chain.total(steps) == chain.total(shuffled) == chain.total(apart) == chain.total([{}, *steps, {}])


@few
@given(chains(), STEPS)
def test_counted_steps_add_up_to_the_total_and_are_the_first_return(
    chain: GatedRewards, steps: list[dict[str, float]]
) -> None:
    assert sum(chain.count(steps)) == chain.total(steps)
    assert len(chain.count(steps)) == len(chain.returns(steps)) == len(steps)
    if steps:
        assert chain.returns(steps)[0] == chain.total(steps)


@few
@given(chains(), STEPS)
def test_open_gates_are_direct_accumulation(chain: GatedRewards, steps: list[dict[str, float]]) -> None:
    ungated = GatedRewards(tuple(Level(level.name, None, level.weight) for level in chain.levels))
    assert ungated.total(steps) == chain.direct().total(steps)
    if chain.account(steps).closed_by is None:
        assert chain.total(steps) == chain.direct().total(steps)


@few
@given(STEPS, whole, whole)
def test_a_higher_threshold_never_opens_a_gate(steps: list[dict[str, float]], one: float, other: float) -> None:
    low, high = (GatedRewards((Level("a", Gate(at)), Level("b"), Level("c"))) for at in sorted((one, other)))
    assert set(high.account(steps).counted) <= set(low.account(steps).counted)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"outcome": 1.0}, {"farm": 1.0}], r"step 1: 'farm' is no level; known: outcome, format"),
        ([{"outcome": math.nan}], r"step 0: outcome is nan; allowed: a finite number"),
        ([{"format": math.inf}], r"step 0: format is inf"),
        ([{"outcome": 1e308}, {"outcome": 1e308}], r"add up to no finite number"),
    ],
)
def test_what_cannot_be_added_up_is_refused(steps: list[dict[str, float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TWO.account(steps)


def test_chains_that_make_no_sense_are_refused() -> None:
    for levels in ((), (Level("a"), Level("a"))):
        with pytest.raises(ValueError, match="allowed: one or more, each of a name of its own"):
            GatedRewards(levels)
    with pytest.raises(ValueError, match="gate is at nan"):
        Gate(math.nan)
    with pytest.raises(ValueError, match="weight of a is -1"):
        Level("a", weight=-1)
    with pytest.raises(ValueError, match=r"discount is 1\.5"):
        TWO.returns([], discount=1.5)
    with pytest.raises(ValueError, match="'x' is no level"):
        TWO.only(["x"])


def test_group_advantages_by_hand() -> None:
    assert group_advantages([0.0, 2.0], scale=False) == [-1.0, 1.0]
    half = 1 / (math.sqrt(2) + 1e-4)
    assert group_advantages([0.0, 2.0]) == pytest.approx([-half, half])
    assert group_advantages([3.0, 3.0, 3.0]) == [0.0, 0.0, 0.0]
    assert group_advantages([0.1, 0.1, 0.1]) == [0.0, 0.0, 0.0]  # whose rounded mean is not 0.1
    assert group_advantages([3.0]) == [0.0]
    assert group_advantages([]) == []
    with pytest.raises(ValueError, match="total 1 is inf"):
        group_advantages([0.0, math.inf])


def test_advantages_of_a_group_of_trajectories() -> None:
    farmed, solved = [{"format": 1.0}] * 20, [{"outcome": 1.0}]
    assert advantages(TWO, [farmed, solved], scale=False) == [-0.5, 0.5]
    assert advantages(TWO.direct(), [farmed, solved], scale=False) == pytest.approx([0.5, -0.5])
