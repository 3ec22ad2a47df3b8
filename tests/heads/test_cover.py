"""Greedy cover on mass matrices small enough to solve by hand."""

import itertools

import pytest
import torch

from lychee_sgl.heads.cover import Cover, greedy_cover


def gains(size: int, entries: dict[tuple[int, int], float]) -> torch.Tensor:
    gain = torch.zeros(size, size, dtype=torch.float64)
    for (a, b), value in entries.items():
        gain[a, b] = value
    return gain


def test_picks_by_hand() -> None:
    # Three layers of two heads: 0 1 | 2 3 | 4 5. Layer 0 (0, 1) is chosen at the start.
    gain = gains(6, {
        (0, 0): 1, (1, 1): 1, (2, 2): 5, (3, 3): 4, (4, 4): 6, (5, 5): 3,
        (0, 2): 1, (1, 3): 3, (0, 4): 2, (1, 5): 1,
        (2, 4): 5, (2, 5): 2, (3, 4): 1, (3, 5): 3,
    })  # fmt: skip
    # covered at the start: 1 1 | 1 3 | 2 1 = 9 of 20.
    # head 2 adds (5-1) + (5-2) + (2-1) = 8; head 3 (4-3) + (3-1) = 3; head 4 6-2 = 4; head 5 3-1 = 2.
    one = greedy_cover(gain, layers=3, heads=2, retrieval=3)
    assert one.order == ((1, 0),)
    assert one.roles == ("RR", "RS", "SS")
    assert one.sources == {(1, 1): (0, 1), (2, 0): (1, 0), (2, 1): (1, 0)}
    assert one.covered == pytest.approx((1 + 1 + 5 + 3 + 5 + 2) / 20)
    # now head 3 adds (4-3) + (3-2) = 2, heads 4 and 5 add 1 each.
    two = greedy_cover(gain, layers=3, heads=2, retrieval=4)
    assert two.order == ((1, 0), (1, 1))
    assert two.sources == {(2, 0): (1, 0), (2, 1): (1, 1)}
    assert two.covered == pytest.approx((1 + 1 + 5 + 4 + 5 + 3) / 20)


def test_only_layer_0_and_everything() -> None:
    gain = gains(4, {(0, 0): 1, (1, 1): 1, (2, 2): 2, (3, 3): 2, (1, 2): 1})
    least = greedy_cover(gain, layers=2, heads=2, retrieval=2)
    assert least.roles == ("RR", "SS")
    assert least.sources == {(1, 0): (0, 1), (1, 1): (0, 0)}
    assert least.covered == pytest.approx(3 / 6)
    most = greedy_cover(gain, layers=2, heads=2, retrieval=4)
    assert (most.roles, most.sources, most.covered) == (("RR", "RR"), {}, 1.0)


def test_what_a_later_or_equal_layer_offers_does_not_count() -> None:
    gain = torch.full((4, 4), 100.0)
    gain[:2, 2:] = 1.0
    cover = greedy_cover(gain, layers=2, heads=2, retrieval=3)
    assert cover.sources == {(1, 1): (0, 0)}  # not (1, 0), which is in its own layer
    assert cover.covered == pytest.approx((100 + 100 + 100 + 1) / 400)


def test_ties_go_to_the_lower_head() -> None:
    gain = gains(6, {(i, i): 1 for i in range(6)})
    cover = greedy_cover(gain, layers=3, heads=2, retrieval=4)
    assert cover.order == ((1, 0), (1, 1))
    assert set(cover.sources.values()) == {(0, 0)}


def test_nothing_needed_is_all_covered() -> None:
    assert greedy_cover(torch.zeros(4, 4), layers=2, heads=2, retrieval=3).covered == 1.0


def random_gain(seed: int, layers: int, heads: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    gain = torch.rand(layers * heads, layers * heads, generator=generator, dtype=torch.float64)
    own = gain.diagonal().clone()
    gain = gain * own  # no set is worth more than all that the head needs
    return gain.fill_diagonal_(0) + own.diag()


def value(gain: torch.Tensor, heads: int, chosen: tuple[int, ...]) -> float:
    """f of a choice, straight from its definition."""
    total = 0.0
    for b in range(len(gain)):
        total += max(float(gain[a, b]) for a in chosen if a == b or a // heads < b // heads)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_within_the_bound_of_the_best_choice_and_never_falling(seed: int) -> None:
    layers, heads = 4, 2
    gain = random_gain(seed, layers, heads)
    base = (0, 1)
    start = value(gain, heads, base)
    last = start
    covers: list[Cover] = []
    for extra in range(1, 4):
        cover = greedy_cover(gain, layers=layers, heads=heads, retrieval=2 + extra)
        chosen = (*base, *(layer * heads + head for layer, head in cover.order))
        got = value(gain, heads, chosen)
        assert cover.covered == pytest.approx(got / float(gain.diagonal().sum()))
        best = max(value(gain, heads, (*base, *more)) for more in itertools.combinations(range(2, 8), extra))
        assert best + 1e-12 >= got >= start + (1 - 1 / 2.718281828) * (best - start)
        assert got >= last
        assert all(cover.order[: len(shorter.order)] == shorter.order for shorter in covers)
        last = got
        covers.append(cover)


@pytest.mark.parametrize(
    ("gain", "retrieval", "message"),
    [
        (torch.zeros(3, 3), 2, r"shape \(3, 3\), expected \(4, 4\)"),
        (torch.zeros(4, 4), 1, r"retrieval heads is 1; allowed: 2 .* to 4"),
        (torch.zeros(4, 4), 5, r"retrieval heads is 5"),
        (torch.full((4, 4), -1.0), 3, "negative or not finite"),
        (torch.full((4, 4), float("nan")), 3, "negative or not finite"),
    ],
)
def test_refusals(gain: torch.Tensor, retrieval: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        greedy_cover(gain, layers=2, heads=2, retrieval=retrieval)
