"""Selection for many rows against its definition, which goes row by row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_kernels.layout import DecodeRows, Mode
from lychee_kernels.select_tokens import select_tokens
from lychee_sgl.heads.select import select_mask


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
    rows, context = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    few = st.sampled_from([0.0, 0.001, 0.125, 0.125, 0.3, float("nan")])  # many ties
    weights = torch.tensor(
        data.draw(st.lists(st.lists(few, min_size=context, max_size=context), min_size=rows, max_size=rows))
    )
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, context), min_size=rows, max_size=rows)))
    budgets = torch.tensor(data.draw(st.lists(st.integers(1, context + 5), min_size=rows, max_size=rows)))
    sinks, recent = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 12))
    same, off = torch.ones(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.bool)
    defined = DecodeRows(
        mode=same * int(Mode.TOPK), budget=budgets.int(), value=torch.zeros(rows, dtype=torch.float64),
        sinks=same * sinks, recent=same * recent, dense=off, audit=off,
    )  # fmt: skip
    positions, counts = select_tokens(weights, lengths, defined)
    masks = select_mask(weights, lengths, budgets, sinks=sinks, recent=recent)
    for row in range(rows):
        assert chosen(masks[row]) == positions[row, : int(counts[row])].tolist()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="budget is 0; allowed: 1 or more"):
        select_mask(torch.ones(3, 4), torch.tensor(4), 0, sinks=1, recent=1)
    with pytest.raises(ValueError, match="weights has no position"):
        select_mask(torch.ones(3, 0), torch.tensor(0), 4, sinks=1, recent=1)
