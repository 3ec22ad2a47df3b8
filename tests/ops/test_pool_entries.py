"""Entries read from the pool in place, against entries laid beside each other in float64."""

from __future__ import annotations

import pytest
import torch

from lychee_kernels.padded import LaidEntries, Part, parts_of
from lychee_kernels.padded_triton import PoolEntries
from tests.ops.triton_cases import DEVICE, DTYPES

pytestmark = [pytest.mark.gpu, pytest.mark.interpret]


def both(
    lengths: list[int], generator: torch.Generator, *, heads: int, dim: int, dtype: torch.dtype
) -> tuple[PoolEntries, LaidEntries, Part]:
    """A pool in no order, poisoned where no row has an entry, whose heads lie apart; and its rows in float64."""
    total = sum(lengths)
    slots = total + 9
    k, v = (torch.full((slots, heads, 2 * dim), torch.nan, dtype=dtype) for _ in range(2))
    indices = torch.randperm(slots, generator=generator)[:total]
    for buffer in (k, v):
        buffer[indices, :, :dim] = torch.randn(total, heads, dim, generator=generator).to(dtype)
    k, v = (buffer.to(DEVICE)[..., :dim] for buffer in (k, v))
    indptr = torch.tensor([0, *lengths]).cumsum(0)
    (part,) = parts_of(indptr.to(DEVICE), indices.to(DEVICE), heads * dim)
    laid = LaidEntries(part, k[part.slots].double() * 0.5, v[part.slots].double() * 3.0)
    return PoolEntries(part, k, v, 0.5, 3.0), laid, part


SHAPES = pytest.mark.parametrize(
    ("lengths", "heads", "group", "dim"),
    [([1, 300, 37], 2, 3, 64), ([129], 1, 1, 80), ([2100, 5, 1024], 1, 2, 64), ([16, 15, 17, 160], 3, 4, 128)],
)


@SHAPES
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_and_bounds_of_pages(lengths, heads, group, dim, dtype, generator) -> None:
    pool, laid, part = both(lengths, generator, heads=heads, dim=dim, dtype=dtype)
    q = torch.randn(len(lengths), heads, group, dim, generator=generator).to(DEVICE)
    torch.testing.assert_close(pool.scores(q, 0.3).double(), laid.scores(q.double(), 0.3), atol=1e-4, rtol=1e-4)
    bounds, expected = pool.page_bounds(q, 16, 0.3), laid.page_bounds(q.double(), 16, 0.3)
    torch.testing.assert_close(bounds.double(), expected, atol=1e-4, rtol=1e-4)
    assert torch.isneginf(bounds).any() == (-(-part.lengths // 16) < bounds.shape[3]).any()


@SHAPES
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_values_of_which_most_weigh_nothing(lengths, heads, group, dim, dtype, generator) -> None:
    """Values without a weight are not read: whatever they are, the sum does not show it."""
    pool, laid, part = both(lengths, generator, heads=heads, dim=dim, dtype=dtype)
    weights = torch.rand(len(lengths), heads, group, part.slots.shape[1], generator=generator)
    first = torch.arange(weights.shape[3]) < 128  # the first tile or two of a row weigh nothing in every second row
    weights = weights.where(weights > 0.7, 0.0)
    weights[1::2] = weights[1::2].masked_fill(first, 0.0)
    weights = weights.to(DEVICE) * part.real[:, None, None]
    expected = laid.summed(weights.double())
    torch.testing.assert_close(pool.summed(weights).double(), expected, atol=1e-4, rtol=1e-4)
    unread = (weights == 0).all(2).nonzero()
    for row, head, position in unread.tolist():
        if position < int(part.lengths[row]):
            pool.v[part.slots[row, position], head] = torch.nan
    torch.testing.assert_close(pool.summed(weights).double(), expected, atol=1e-4, rtol=1e-4)


def test_a_weight_that_is_no_number_is_one_of_the_sum(generator) -> None:
    pool, *_ = both([40, 3], generator, heads=1, dim=64, dtype=torch.float16)
    weights = torch.zeros(2, 1, 1, 40, device=DEVICE)
    weights[0, 0, 0, 39] = torch.nan
    found = pool.summed(weights)
    assert found[0].isnan().all()
    assert found[1].eq(0).all()
