"""Selection: by hand on few tokens, then by its properties on random rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_kernels.layout import DecodeRows, Mode, kept_window, set_bound
from lychee_kernels.select_tokens import select_tokens
from lychee_kernels.testing import make_rows

NAN = math.nan


def select(weights: list[float], **row: object) -> list[int]:
    positions, counts = select_tokens(torch.tensor([weights]), torch.tensor([len(weights)]), make_rows(1, **row))
    assert counts[0] == positions.shape[1]
    return positions[0].tolist()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"budget": 5, "sinks": 1, "recent": 1}, [0, 2, 3, 5, 7]),
        ({"budget": 2, "sinks": 0, "recent": 0}, [2, 7]),
        ({"budget": 1, "sinks": 1, "recent": 1}, [7]),
        ({"budget": 8, "sinks": 1, "recent": 1}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"budget": 10**6, "sinks": 1, "recent": 1}, [0, 1, 2, 3, 4, 5, 6, 7]),
        # three quarters of 4 are 3 kept: sinks 3*4//8 = 1, recent 2
        ({"budget": 4, "sinks": 4, "recent": 4}, [0, 2, 6, 7]),
        ({"mode": Mode.RATIO, "budget": 0, "value": 0.25, "sinks": 0, "recent": 1}, [2, 7]),
        ({"mode": Mode.RATIO, "budget": 0, "value": 1.0}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"mode": Mode.RATIO, "budget": 3, "value": 0.9, "sinks": 0, "recent": 1}, [2, 5, 7]),
        ({"mode": Mode.THRESHOLD, "budget": 0, "value": 0.1, "sinks": 0, "recent": 1}, [2, 5, 7]),
        ({"mode": Mode.THRESHOLD, "budget": 2, "value": 0.1, "sinks": 0, "recent": 1}, [2, 7]),
        ({"mode": Mode.THRESHOLD, "budget": 0, "value": 0.99, "sinks": 0, "recent": 1}, [7]),
        ({"mode": Mode.TOP_P, "budget": 0, "value": 0.7, "sinks": 0, "recent": 1}, [2, 5, 7]),
        ({"mode": Mode.TOP_P, "budget": 0, "value": 0.05, "sinks": 0, "recent": 1}, [7]),
        ({"mode": Mode.TOP_P, "budget": 3, "value": 1.0, "sinks": 0, "recent": 1}, [2, 5, 7]),
    ],
)
def test_sets_by_hand(row: dict[str, object], expected: list[int]) -> None:
    assert select([0.05, 0.01, 0.40, 0.08, 0.02, 0.30, 0.04, 0.10], **row) == expected


def test_ties_go_to_the_lower_position() -> None:
    assert select([0.2] * 5, budget=3, sinks=0, recent=1) == [0, 1, 4]


def test_nan_and_infinite_rows_have_an_answer() -> None:
    assert select([NAN, 0.1, NAN, 0.3, 0.0], budget=3, sinks=0, recent=1) == [1, 3, 4]
    assert select([NAN] * 4, budget=2, sinks=0, recent=1) == [0, 3]
    assert select([-math.inf] * 4, budget=2, sinks=0, recent=1) == [0, 3]


def test_one_token_is_always_selected() -> None:
    for mode in Mode:
        assert select([1.0], mode=mode, budget=1, value=0.5) == [0]


def test_a_dense_row_has_an_empty_set_and_rows_are_padded() -> None:
    weights = torch.rand(3, 9)
    rows = make_rows(3, budget=[4, 4, 2], sinks=0, recent=1, dense=[False, True, False])
    positions, counts = select_tokens(weights, torch.tensor([9, 9, 5]), rows)
    assert counts.tolist() == [4, 0, 2]
    assert positions[1].tolist() == [-1] * 4
    assert positions[2, 2:].tolist() == [-1] * 2


def test_what_lies_behind_the_length_is_not_read() -> None:
    weights = torch.tensor([[0.3, 0.5, 0.2, NAN, 1e9]])
    positions, _ = select_tokens(weights, torch.tensor([3]), make_rows(1, budget=2, sinks=0, recent=1))
    assert positions.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("weights", "seq_lens", "message"),
    [
        (torch.rand(2, 4), torch.tensor([4]), "seq_lens has shape"),
        (torch.rand(1, 4), torch.tensor([5]), "between 1 and n_max=4"),
        (torch.rand(1, 4), torch.tensor([0]), "between 1 and n_max=4"),
    ],
)
def test_refusals(weights: torch.Tensor, seq_lens: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_tokens(weights, seq_lens, make_rows(weights.shape[0]))


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="impl is 'cuda'"):
        select_tokens(torch.rand(1, 4), torch.tensor([4]), make_rows(1), impl="cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bound", "expected"), [(512, (64, 256)), (427, (64, 256)), (426, (63, 256)), (256, (38, 154)), (1, (0, 0))]
)
def test_small_budgets_leave_a_quarter_to_attention(bound: int, expected: tuple[int, int]) -> None:
    assert kept_window(bound, 64, 256) == expected


@pytest.mark.parametrize(("value", "length", "bound"), [(0.3, 10, 3), (0.1, 30, 3), (0.31, 10, 4), (1e-9, 10, 1)])
def test_ratio_is_not_off_by_one_from_binary_fractions(value: float, length: int, bound: int) -> None:
    assert set_bound(Mode.RATIO, 0, value, length) == bound


ROWS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(list(Mode)),
        "budget": st.integers(1, 60),
        "value": st.floats(0.01, 0.99),
        "sinks": st.integers(0, 12),
        "recent": st.integers(0, 12),
    }
)


@settings(deadline=None, max_examples=150)
@given(row=ROWS, length=st.integers(1, 50), levels=st.sampled_from([1, 2, 3, 1000]), seed=st.integers(0, 2**31))
def test_a_set_is_bounded_keeps_its_window_and_leaves_nothing_better_out(
    row: dict[str, object], length: int, levels: int, seed: int
) -> None:
    """Few levels make many ties."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(1, levels + 1, (1, length), generator=generator).double().softmax(-1)
    rows: DecodeRows = make_rows(1, **row)
    positions, counts = select_tokens(weights, torch.tensor([length]), rows)
    chosen = positions[0].tolist()
    assert chosen == sorted(set(chosen))
    bound = set_bound(row["mode"], row["budget"], row["value"], length)
    assert 1 <= len(chosen) <= bound
    assert length - 1 in chosen
    if row["mode"] in (Mode.TOPK, Mode.RATIO):
        assert int(counts[0]) == bound
    window = (row["sinks"], row["recent"])
    kept_sinks, kept_recent = kept_window(bound, *window) if bound < length else window
    kept = {i for i in range(length) if i < kept_sinks or i >= length - max(kept_recent, 1)}
    assert kept <= set(chosen)
    picked = [(-float(weights[0, i]), i) for i in chosen if i not in kept]
    left = [(-float(weights[0, i]), i) for i in range(length) if i not in chosen]
    if picked and left:
        assert max(picked) < min(left)
