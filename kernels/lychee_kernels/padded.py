"""Rows of a decode batch side by side, padded to the longest of them: attention in torch without a loop over rows.

How rows lie beside each other is the same in all layers of a step, so it is found once. After that nothing waits for
the device: where several processes share one, each wait is a turn of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from lychee_kernels.layout import DecodeRows, TokenSets

PART_ENTRIES = 1 << 28
"""Numbers of keys that are laid out at a time, at most, unless a single row has more: 1 GiB in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some rows of a batch; b of them, the longest with n tokens.

    Attributes:
        rows: their places in the batch.
        lengths: int64 [b], on the device of the pool.
        real: bool [b, n], which positions a row has.
        slots: int64 [b, n], where their entries are in the pool; another of the row's slots where it has no token.
    """

    rows: slice
    lengths: torch.Tensor
    real: torch.Tensor
    slots: torch.Tensor


def parts_of(kv_indptr: torch.Tensor, kv_indices: torch.Tensor, entry: int) -> list[Part]:
    """Lays the rows of a batch beside each other, as many at a time as `PART_ENTRIES` lets.

    Args:
        kv_indptr: [B+1]; the slot of position p of row b is `kv_indices[kv_indptr[b] + p]`.
        kv_indices: [sum of lengths].
        entry: numbers of a token's keys in a layer, H * D.
    """
    lengths = [end - start for start, end in pairwise(kv_indptr.tolist())]
    found, first = [], 0
    while first < len(lengths):
        last, longest = first + 1, lengths[first]
        while last < len(lengths):
            longer = max(longest, lengths[last])
            if (last + 1 - first) * longer * entry > PART_ENTRIES:
                break
            last, longest = last + 1, longer
        begin, mine = kv_indptr[first:last].long(), kv_indptr[first : last + 1].diff().long()
        position = torch.arange(longest, device=kv_indices.device)
        real = position < mine[:, None]
        slots = kv_indices[(begin[:, None] + position).where(real, begin[:, None])].long()
        found.append(Part(rows=slice(first, last), lengths=mine, real=real, slots=slots))
        first = last
    return found


class Entries(Protocol):
    """Keys and values of a part's rows in one layer, wherever they lie."""

    def scores(self, q: torch.Tensor, sm_scale: float) -> torch.Tensor:
        """Scaled scores of queries [b, H, G, D]: [b, H, G, n], -inf where a row has no token."""

    def summed(self, weights: torch.Tensor) -> torch.Tensor:
        """Sums of the values by weights [b, H, G, n], zero where a row has no token: [b, H, G, D]."""

    def page_bounds(self, q: torch.Tensor, page: int, sm_scale: float) -> torch.Tensor:
        """The largest score that a key within the least and largest numbers of a page's keys could have.

        Args:
            q: [b, H, G, D].
            page: positions of a page; the last one of a row may have fewer.
            sm_scale: factor of the scores.

        Returns:
            [b, H, G, ceil(n / page)], -inf where a row has no token in a page.
        """


@dataclass(frozen=True, slots=True)
class LaidEntries:
    """`Entries` in torch, laid beside each other in the dtype that is computed in; keys and values are [b, n, H, D]."""

    part: Part
    keys: torch.Tensor
    values: torch.Tensor

    def scores(self, q: torch.Tensor, sm_scale: float) -> torch.Tensor:
        """See `Entries.scores`."""
        found = torch.einsum("bhgd,bnhd->bhgn", q, self.keys) * sm_scale
        return found.masked_fill(~self.part.real[:, None, None], -torch.inf)

    def summed(self, weights: torch.Tensor) -> torch.Tensor:
        """See `Entries.summed`."""
        return torch.einsum("bhgn,bnhd->bhgd", weights, self.values)

    def page_bounds(self, q: torch.Tensor, page: int, sm_scale: float) -> torch.Tensor:
        """See `Entries.page_bounds`."""
        rows, length, *entry = self.keys.shape
        missing = -length % page
        pages = torch.nn.functional.pad(self.part.real, (0, missing)).view(rows, -1, page)

        def extreme(fill: float) -> torch.Tensor:
            known = self.keys.masked_fill(~self.part.real[..., None, None], fill)
            padded = torch.nn.functional.pad(known, (0, 0, 0, 0, 0, missing), value=fill).view(rows, -1, page, *entry)
            found = padded.amin(2) if fill > 0 else padded.amax(2)
            return found.masked_fill(~pages.any(2)[..., None, None], 0.0)

        low, high = extreme(torch.inf), extreme(-torch.inf)
        # the larger of q_d * min and q_d * max is q_d's positive part times max plus its negative part times min
        found = torch.einsum("bhgd,bphd->bhgp", q.clamp(min=0), high)
        found += torch.einsum("bhgd,bphd->bhgp", q.clamp(max=0), low)
        return (found * sm_scale).masked_fill(~pages.any(2)[:, None, None], -torch.inf)


def entries_of(
    part: Part,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    dtype: torch.dtype,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Entries:
    """Entries of a pool, buffers [slots, H, D], for computing in a dtype.

    A GPU's pool is read in place; one of eight bits, and float64, go through torch.
    """
    if k_buffer.is_cuda and k_buffer.itemsize > 1 and dtype == torch.float32:
        from lychee_kernels.padded_triton import PoolEntries

        return PoolEntries(part, k_buffer, v_buffer, k_scale, v_scale)
    return LaidEntries(part, _laid(k_buffer, part.slots, k_scale, dtype), _laid(v_buffer, part.slots, v_scale, dtype))


def _laid(buffer: torch.Tensor, slots: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """Entries [*slots, H, D]; those of eight bits travel as bytes, which can be indexed anywhere."""
    raw = buffer.view(torch.uint8) if buffer.itemsize == 1 else buffer
    laid = raw[slots].view(buffer.dtype).to(dtype)
    return laid if scale == 1.0 else laid * scale


@lru_cache(maxsize=4096)
def on_device(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Numbers of the plan, int64, sent to a device once: sending waits for it."""
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def members(sets: TokenSets, rows: slice, roots: torch.Tensor, positions: int) -> torch.Tensor:
    """Which positions are in the sets of these roots, int64 [r]: bool [b, r, positions]."""
    chosen = sets.positions[rows][:, roots].long()
    held = torch.arange(chosen.shape[2], device=chosen.device) < sets.counts[rows][:, roots, None]
    found = torch.zeros((*chosen.shape[:2], positions + 1), dtype=torch.bool, device=chosen.device)
    return found.scatter_(2, chosen.where(held, positions), value=True)[..., :positions]


def keep(sets: TokenSets, rows: slice, root: int, chosen: torch.Tensor) -> None:
    """Writes one root's sets, given as bool [b, n]; none may have more positions than the sets' capacity."""
    capacity = sets.positions.shape[2]
    place = (chosen.cumsum(1) - 1).clamp(max=capacity).where(chosen, capacity)
    kept = torch.full((len(chosen), capacity + 1), -1, dtype=torch.int32, device=chosen.device)
    position = torch.arange(chosen.shape[1], dtype=torch.int32, device=chosen.device)
    sets.positions[rows, root] = kept.scatter_(1, place, position.expand_as(chosen))[:, :capacity]
    sets.counts[rows, root] = chosen.sum(1).to(torch.int32)


@dataclass(slots=True, kw_only=True)
class Sums:
    """What a layer gives for the whole batch, filled part by part; see `HybridDecode`."""

    out: torch.Tensor
    lse: torch.Tensor
    attended: torch.Tensor
    recall_sum: torch.Tensor
    recall_heads: torch.Tensor

    @classmethod
    def empty(cls, grouped: torch.Tensor) -> Sums:
        """For queries [B, H, G, D]."""
        batch, device = grouped.shape[0], grouped.device
        return cls(
            out=torch.zeros_like(grouped),
            lse=torch.full(grouped.shape[:3], -torch.inf, dtype=grouped.dtype, device=device),
            attended=torch.zeros(batch, dtype=torch.int64, device=device),
            recall_sum=torch.zeros(batch, dtype=torch.float64, device=device),
            recall_heads=torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def add(
        self,
        part: Part,
        scores: torch.Tensor,
        entries: Entries,
        allowed: torch.Tensor,
        sparse: torch.Tensor,
        rows: DecodeRows,
    ) -> None:
        """Attends.

        Args:
            part: the rows.
            scores: [b, H, G, n], of all their positions.
            entries: theirs.
            allowed: bool [b, H, n], what each head reads; all of it in a row that is dense.
            sparse: bool [H], whose recall is measured in rows that are audited and not dense.
            rows: of the whole batch.
        """
        here = part.rows
        read = scores.masked_fill(~allowed[:, :, None], -torch.inf)
        lse = read.logsumexp(-1)
        # a head that reads nothing has no largest score to subtract: its weights are then exp(-inf)
        weights = (read - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
        self.out[here] = entries.summed(weights)
        self.lse[here] = lse
        self.attended[here] = allowed.sum((1, 2))
        counted = sparse & (rows.audit & ~rows.dense)[here, None]
        held = (lse - scores.logsumexp(-1)).double().exp().mean(2)
        self.recall_sum[here] = held.where(counted, 0.0).sum(1)
        self.recall_heads[here] = counted.sum(1)
