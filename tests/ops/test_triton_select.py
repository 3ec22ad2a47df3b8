"""The Triton selection against the definition: bounds, ties, rows without numbers, and how far it is from exact."""

import pytest
import torch

from lychee_kernels.layout import Mode
from lychee_kernels.select_tokens import select_tokens
from lychee_kernels.select_tokens.triton import select_tokens as select_on_gpu
from lychee_kernels.testing import make_rows
from tests.ops.triton_cases import DEVICE, on_device

pytestmark = [pytest.mark.gpu, pytest.mark.interpret]


def select(weights: torch.Tensor, lengths: list[int], **rows: object) -> tuple[torch.Tensor, torch.Tensor]:
    made = on_device(make_rows(len(lengths), **rows))
    positions, counts = select_on_gpu(weights.to(DEVICE), torch.tensor(lengths, device=DEVICE), made, chunk=64)
    return positions.cpu(), counts.cpu()


def attention_like(rows: int, length: int, sharpness: float) -> torch.Tensor:
    return (torch.randn(rows, length) * sharpness).softmax(-1)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0])
def test_no_chosen_weight_is_more_than_a_32nd_below_one_left_out(sharpness: float) -> None:
    lengths = [500, 333, 65]
    weights = attention_like(3, 500, sharpness)
    # 36 positions to choose: the last of 512 bins begins at 1/32, and below the second, 510 bins lower, all are equal
    second_bin = 2**-5 * 2**-16 * (1 + 2 / 32)
    positions, counts = select(weights, lengths, budget=48, sinks=4, recent=8)
    assert counts.tolist() == [48, 48, 48]
    for b, length in enumerate(lengths):
        chosen = positions[b, : counts[b]].long()
        assert (chosen.diff() > 0).all()
        assert {*range(4), *range(length - 8, length)} <= set(chosen.tolist())
        others = torch.ones(length, dtype=torch.bool)
        others[:4] = others[length - 8 :] = False
        inside = others.clone()
        inside[torch.arange(length)[:, None].eq(chosen[None]).logical_not().all(1)] = False
        left = others & ~inside
        if left.any():
            floor, best = weights[b, :length][inside].min(), weights[b, :length][left].max()
            assert floor >= best * (1 - 1 / 32) or best < second_bin


def test_mass_is_within_a_hundredth_of_exact() -> None:
    weights = attention_like(4, 700, 2.0)
    lengths = [700] * 4
    positions, counts = select(weights, lengths, budget=80, sinks=2, recent=4)
    exact, exact_counts = select_tokens(
        weights, torch.tensor(lengths), make_rows(4, budget=80, sinks=2, recent=4), impl="reference"
    )
    assert torch.equal(counts, exact_counts)
    held = weights.gather(1, positions.long()).sum(1)
    best = weights.gather(1, exact.long()).sum(1)
    assert (held <= best + 1e-6).all()
    assert (held >= best * 0.995).all()


def test_ties_go_to_the_lower_position() -> None:
    weights = torch.full((1, 200), 1 / 200)
    positions, counts = select(weights, [200], budget=20, sinks=2, recent=3)
    assert positions[0].tolist() == [*range(17), 197, 198, 199]
    assert counts.tolist() == [20]


@pytest.mark.parametrize("filling", [0.0, float("nan"), 1e-30])
def test_rows_without_usable_weights_still_give_full_sets(filling: float) -> None:
    positions, counts = select(torch.full((1, 150), filling), [150], budget=10, sinks=1, recent=1)
    assert counts.tolist() == [10]
    assert positions[0].tolist() == [*range(9), 149]


def test_numbers_go_before_what_is_none() -> None:
    weights = torch.full((1, 100), float("nan"))
    weights[0, 50:60] = 0.05
    positions, _ = select(weights, [100], budget=12, sinks=1, recent=1)
    assert positions[0].tolist() == [0, *range(50, 60), 99]


@pytest.mark.parametrize("budget", [1, 2, 3, 63, 64, 65, 199])
def test_budgets_of_any_size(budget: int) -> None:
    weights = attention_like(1, 200, 1.0)
    positions, counts = select(weights, [200], budget=budget, sinks=4, recent=8)
    assert counts.tolist() == [budget]
    assert positions[0, -1] == 199


def test_a_budget_that_covers_the_context_and_a_dense_row() -> None:
    weights = attention_like(2, 30, 1.0)
    positions, counts = select(weights, [30, 20], budget=30, sinks=1, recent=1, dense=[True, False])
    assert counts.tolist() == [0, 20]
    assert positions[1].tolist() == list(range(20))


def test_threshold_is_exact() -> None:
    weights = attention_like(2, 300, 3.0)
    arguments = {"mode": Mode.THRESHOLD, "budget": 0, "value": 0.004, "sinks": 2, "recent": 3}
    positions, counts = select(weights, [300, 211], **arguments)
    exact, exact_counts = select_tokens(weights, torch.tensor([300, 211]), make_rows(2, **arguments), impl="reference")
    assert torch.equal(counts, exact_counts)
    assert torch.equal(positions, exact)


def test_a_threshold_with_a_bound_keeps_the_heaviest() -> None:
    weights = attention_like(1, 300, 3.0)
    positions, counts = select(weights, [300], mode=Mode.THRESHOLD, budget=12, value=1e-6, sinks=2, recent=3)
    assert counts.tolist() == [12]
    heaviest = int(weights[0, 2:297].argmax()) + 2
    assert heaviest in positions[0].tolist()


@pytest.mark.parametrize("value", [0.3, 0.8, 0.95])
def test_top_p_holds_what_was_asked_and_little_more(value: float) -> None:
    weights = attention_like(3, 400, 2.0)
    arguments = {"mode": Mode.TOP_P, "budget": 0, "value": value, "sinks": 2, "recent": 3}
    positions, counts = select(weights, [400] * 3, **arguments)
    _, exact_counts = select_tokens(weights, torch.tensor([400] * 3), make_rows(3, **arguments), impl="reference")
    for b in range(3):
        assert weights[b, positions[b, : counts[b]].long()].sum() >= value - 1e-5
        assert exact_counts[b] <= counts[b] <= exact_counts[b] * 1.15 + 2
