"""Selection by budget for many rows against its definition, which goes row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_kernels.layout import DecodeRows, Mode
from lychee_kernels.select_tokens import select_mask, select_tokens


def chosen(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def test_selection_by_hand() -> None:
    weights = torch.tensor([0.05, 0.01, 0.3, 0.1, 0.2, 0.04, 0.2, 0.1, 0.0])
    length = torch.tensor(8)
    # budget 4 keeps floor(3 * 4 / 4) = 3 of 1 sink and 2 recent: 0, 6, 7; one more by weight: 2
    assert chosen(select_mask(weights, length, 4, sinks=1, recent=2)) == [0, 2, 6, 7]
    # budget 6: 2 and 4, then 3 (0.1)
    assert chosen(select_mask(weights, length, 6, sinks=1, recent=2)) == [0, 2, 3, 4, 6, 7]
    # budget 1: the current token alone
    assert chosen(select_mask(weights, length, 1, sinks=1, recent=2)) == [7]
    # a budget that covers the context: everything up to the length
    assert chosen(select_mask(weights, length, 8, sinks=1, recent=2)) == list(range(8))
    two = select_mask(weights.repeat(2, 1), torch.tensor([8, 9]), 4, sinks=1, recent=2)
    assert chosen(two[1]) == [0, 2, 7, 8]


def test_equal_weights_stay_in_order_and_nan_comes_last() -> None:
    weights = torch.tensor([0.0, 0.0, float("nan"), 0.0, 0.1, 0.0])
    assert chosen(select_mask(weights, torch.tensor(6), 3, sinks=0, recent=1)) == [0, 4, 5]
    assert chosen(select_mask(weights, torch.tensor(6), 5, sinks=0, recent=1)) == [0, 1, 3, 4, 5]
    assert chosen(select_mask(weights, torch.tensor(6), 6, sinks=0, recent=1)) == [0, 1, 2, 3, 4, 5]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_every_row_is_the_definitions(data: st.DataObject) -> None:
    """Two heads over the same rows; numbers for all rows or one a row, with and without the largest of them."""
    rows, context = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    few = st.sampled_from([0.0, 0.001, 0.125, 0.125, 0.3, float("nan")])  # many ties
    weights = torch.tensor(data.draw(st.lists(few, min_size=2 * rows * context, max_size=2 * rows * context)))
    weights = weights.view(2, rows, context).requires_grad_(data.draw(st.booleans()))
    lengths = data.draw(st.lists(st.integers(1, context), min_size=rows, max_size=rows))

    def numbers(low: int, high: int) -> int | torch.Tensor:
        one = st.integers(low, high)
        return data.draw(one | st.lists(one, min_size=rows, max_size=rows).map(torch.tensor))

    budgets, sinks, recent = numbers(1, context + 5), numbers(0, 12), numbers(0, 12)
    each, off = torch.ones(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.bool)
    defined = DecodeRows(
        mode=each * int(Mode.TOPK), budget=each * budgets, value=torch.zeros(rows, dtype=torch.float64),
        sinks=each * sinks, recent=each * recent, dense=off, audit=off,
    )  # fmt: skip
    known = data.draw(st.booleans())
    most = int(defined.budget.max()) if known else None
    masks = select_mask(weights, torch.tensor(lengths), budgets, sinks=sinks, recent=recent, most=most)
    for head in range(2):
        positions, counts = select_tokens(weights[head], torch.tensor(lengths), defined)
        for row in range(rows):
            assert chosen(masks[head, row]) == positions[row, : int(counts[row])].tolist()
            assert positions[row, int(counts[row]) :].eq(-1).all()


def test_no_rows_have_no_sets() -> None:
    none = select_mask(torch.ones(0, 3, 4), torch.tensor([4, 4, 4]), 2, sinks=1, recent=1)
    assert (none.shape, none.dtype) == ((0, 3, 4), torch.bool)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="budget is 0; allowed: 1 or more"):
        select_mask(torch.ones(3, 4), torch.tensor(4), 0, sinks=1, recent=1)
    with pytest.raises(ValueError, match="weights has no position"):
        select_mask(torch.ones(3, 0), torch.tensor(0), 4, sinks=1, recent=1)
