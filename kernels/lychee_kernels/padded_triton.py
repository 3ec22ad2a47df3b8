"""A part's keys and values straight from the pool of a GPU: nothing is laid out, and what nobody reads is not loaded.

In torch the entries of a part are gathered, widened and copied into the order of a matrix product, some ten times the
bytes that the pool holds of them. Here they are read where they lie, a value only where a weight is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from lychee_kernels.padded import Part

TILE = 8192
"""Numbers of keys or values that a program holds at a time."""
SPAN = 1024
"""Positions whose values one program sums."""


@triton.jit
def scores_kernel(  # type: ignore[no-untyped-def]
    q, k, slots, lengths, out, sm_scale, n, slot_stride, head_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of a row's positions for one head's group; -inf where the row has no token."""
    row, head = tl.program_id(1).to(tl.int64), tl.program_id(2)
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    column = tl.arange(0, COLUMNS)
    real = position < tl.load(lengths + row)
    slot = tl.load(slots + row * n + position, mask=position < n, other=0).to(tl.int64)
    inside = real[:, None] & (column < DIM)[None, :]
    place = slot[:, None] * slot_stride + head * head_stride + column[None, :]
    key = tl.load(k + place, mask=inside, other=0.0).to(tl.float32)
    for member in range(GROUP):
        query = (row * HEADS + head) * GROUP + member
        asked = tl.load(q + query * DIM + column, mask=column < DIM, other=0.0)
        found = tl.sum(key * asked[None, :], 1) * sm_scale
        tl.store(out + query * n + position, tl.where(real, found, float("-inf")), mask=position < n)


@triton.jit
def values_kernel(  # type: ignore[no-untyped-def]
    weights, v, slots, lengths, out, n, parts, slot_stride, head_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, POSITIONS: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    """The weighted sum of one query's values over `SPAN` positions; a tile without weight is not read."""
    part, row, query = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    head = query // GROUP
    column = tl.arange(0, COLUMNS)
    length = tl.load(lengths + row)
    line = row * HEADS * GROUP + query
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for tile in range(SPAN // POSITIONS):
        position = part * SPAN + tile * POSITIONS + tl.arange(0, POSITIONS)
        weight = tl.load(weights + line * n + position, mask=position < length, other=0.0)
        read = weight != 0  # a NaN among the weights is one of the result
        if tl.max(read.to(tl.int32), 0) > 0:
            slot = tl.load(slots + row * n + position, mask=read, other=0).to(tl.int64)
            inside = read[:, None] & (column < DIM)[None, :]
            place = slot[:, None] * slot_stride + head * head_stride + column[None, :]
            value = tl.load(v + place, mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(value * weight[:, None], 0)
    tl.store(out + (line * parts + part) * DIM + column, total, mask=column < DIM)


@triton.jit
def pages_kernel(  # type: ignore[no-untyped-def]
    q, k, slots, lengths, out, sm_scale, n, pages, slot_stride, head_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """The largest score that a page's keys could have, by their least and largest numbers; -inf without a token."""
    page, row, head = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    position = page * PAGE + tl.arange(0, PAGE)
    column = tl.arange(0, COLUMNS)
    length = tl.load(lengths + row)
    real = position < length
    slot = tl.load(slots + row * n + position, mask=real, other=0).to(tl.int64)
    inside = real[:, None] & (column < DIM)[None, :]
    place = slot[:, None] * slot_stride + head * head_stride + column[None, :]
    key = tl.load(k + place, mask=inside, other=0.0).to(tl.float32)
    low = tl.min(tl.where(real[:, None], key, float("inf")), 0)
    high = tl.max(tl.where(real[:, None], key, float("-inf")), 0)
    for member in range(GROUP):
        query = (row * HEADS + head) * GROUP + member
        asked = tl.load(q + query * DIM + column, mask=column < DIM, other=0.0)
        # a number that is not asked for counts nothing, also where it is infinite
        best = tl.where(asked > 0, asked * high, tl.where(asked < 0, asked * low, 0.0))
        found = tl.where(page * PAGE < length, tl.sum(best, 0) * sm_scale, float("-inf"))
        tl.store(out + query * pages + page, found)


@dataclass(frozen=True, slots=True)
class PoolEntries:
    """See `lychee_kernels.padded.Entries`; computes in float32.

    Attributes:
        part: the rows.
        k: the layer's keys, [slots, H, D], of sixteen or thirty-two bits, D side by side.
        v: its values, as the keys.
        k_scale: factor of the keys.
        v_scale: factor of the values.
    """

    part: Part
    k: torch.Tensor
    v: torch.Tensor
    k_scale: float
    v_scale: float

    def scores(self, q: torch.Tensor, sm_scale: float) -> torch.Tensor:
        """As `Entries.scores`."""
        rows, heads, group, dim = q.shape
        n, columns = self.part.slots.shape[1], triton.next_power_of_2(dim)
        positions = max(1, TILE // columns)
        out = torch.empty((rows, heads, group, n), dtype=torch.float32, device=q.device)
        scores_kernel[(triton.cdiv(n, positions), rows, heads)](
            q.contiguous(), self.k, self.part.slots, self.part.lengths, out, sm_scale * self.k_scale, n,
            *self.k.stride()[:2], HEADS=heads, GROUP=group, DIM=dim, COLUMNS=columns, POSITIONS=positions,
        )  # fmt: skip
        return out

    def summed(self, weights: torch.Tensor) -> torch.Tensor:
        """As `Entries.summed`."""
        rows, heads, group, n = weights.shape
        dim = self.v.shape[2]
        columns, parts = triton.next_power_of_2(dim), triton.cdiv(n, SPAN)
        out = torch.empty((rows, heads, group, parts, dim), dtype=torch.float32, device=weights.device)
        values_kernel[(parts, rows, heads * group)](
            weights.contiguous(), self.v, self.part.slots, self.part.lengths, out, n, parts, *self.v.stride()[:2],
            HEADS=heads, GROUP=group, DIM=dim, COLUMNS=columns, POSITIONS=min(SPAN, max(1, TILE // columns)), SPAN=SPAN,
        )  # fmt: skip
        return out.sum(3) * self.v_scale

    def page_bounds(self, q: torch.Tensor, page: int, sm_scale: float) -> torch.Tensor:
        """As `Entries.page_bounds`."""
        rows, heads, group, dim = q.shape
        n = self.part.slots.shape[1]
        pages = triton.cdiv(n, page)
        out = torch.empty((rows, heads, group, pages), dtype=torch.float32, device=q.device)
        pages_kernel[(pages, rows, heads)](
            q.contiguous(), self.k, self.part.slots, self.part.lengths, out, sm_scale * self.k_scale, n, pages,
            *self.k.stride()[:2], HEADS=heads, GROUP=group, DIM=dim, COLUMNS=triton.next_power_of_2(dim), PAGE=page,
        )  # fmt: skip
        return out
