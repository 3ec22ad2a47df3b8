"""A hybrid decode layer for all rows at once, in torch: for batches that the kernels do not take, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lychee_kernels.hybrid_decode.api import HybridDecode
from lychee_kernels.layout import DecodeRows, LayerHeads, Mode, TokenSets
from lychee_kernels.padded import Part, Sums, entries_of, keep, members, on_device, parts_of
from lychee_kernels.select_tokens.batched import choose, row_bounds
from lychee_kernels.select_tokens.reference import select_row

if TYPE_CHECKING:
    from collections.abc import Sequence

_SIZED = (Mode.TOPK, Mode.RATIO)


def handed_down(part: Part, heads: LayerHeads, sets: TokenSets, rows: DecodeRows) -> tuple[torch.Tensor, torch.Tensor]:
    """What each head reads by the plan, bool [b, H, n], and which heads are sparse, bool [H]."""
    device = part.real.device
    allowed = part.real[:, None].repeat(1, len(heads.reads), 1)
    if heads.sparse:
        readers, roots = zip(*((head, root) for head, root in enumerate(heads.reads) if root >= 0), strict=True)
        held = members(sets, part.rows, on_device(roots, device), part.real.shape[1])
        allowed[:, on_device(readers, device)] = (held | rows.dense[part.rows, None, None]) & part.real[:, None]
    return allowed, on_device(heads.reads, device) >= 0


def _select(part: Part, weights: torch.Tensor, heads: LayerHeads, sets: TokenSets, rows: DecodeRows) -> None:
    """Writes the sets of the layer's retrieval heads; weights [b, H, n]."""
    here, modes = part.rows, rows.mode[part.rows].tolist()
    hand_down(part, weights, heads, sets, rows)
    for b, mode in enumerate(modes):
        row = here.start + b
        if mode in _SIZED or bool(rows.dense[row]):
            continue
        asked = (int(rows.budget[row]), float(rows.value[row]), int(rows.sinks[row]), int(rows.recent[row]))
        for head, root in enumerate(heads.writes):
            if root >= 0:
                own = weights[b, head, : int(part.lengths[b])]
                sets.write(row, root, select_row(own, Mode(mode), *asked))


def hand_down(part: Part, weights: torch.Tensor, heads: LayerHeads, sets: TokenSets, rows: DecodeRows) -> None:
    """Writes the heaviest positions of every head that writes, for rows whose sets have a size; weights [b, H, n]."""
    writers = tuple(head for head, root in enumerate(heads.writes) if root >= 0)
    # no set that counts has more positions than there is room for
    sized = row_bounds(rows, part.rows, part.lengths, weights.shape[2], most=sets.positions.shape[2])
    chosen = choose(weights[:, on_device(writers, weights.device)], sized)
    chosen &= ~rows.dense[part.rows, None, None]
    for column, head in enumerate(writers):
        keep(sets, part.rows, heads.writes[head], chosen[:, column])


def hybrid_decode(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    heads: LayerHeads,
    sets: TokenSets,
    rows: DecodeRows,
    sm_scale: float,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    parts: Sequence[Part] | None = None,
) -> HybridDecode:
    """See `lychee_kernels.hybrid_decode`; computes in float64 when q is float64, else in float32.

    `parts` is how the rows lie, where that is known from another layer of the step.
    """
    grouped = grouped_queries(q, k_buffer.shape[1])
    sums = Sums.empty(grouped)
    for part in parts or parts_of(kv_indptr, kv_indices, k_buffer.shape[1] * k_buffer.shape[2]):
        entries = entries_of(part, k_buffer, v_buffer, grouped.dtype, k_scale=k_scale, v_scale=v_scale)
        scores = entries.scores(grouped[part.rows], sm_scale)
        sums.add(part, scores, entries, *handed_down(part, heads, sets, rows), rows)
        if max(heads.writes) >= 0:
            _select(part, scores.softmax(-1).mean(2), heads, sets, rows)
    return decoded(sums, q)


def grouped_queries(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[B, H*G, D] as [B, H, G, D], in the dtype that is computed in."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.reshape(q.shape[0], kv_heads, -1, q.shape[-1]).to(dtype)


def decoded(sums: Sums, q: torch.Tensor) -> HybridDecode:
    """The layer's result in the shapes of q [B, H*G, D]."""
    return HybridDecode(
        out=sums.out.reshape(q.shape).to(q.dtype),
        lse=sums.lse.reshape(q.shape[:2]),
        attended=sums.attended,
        recall_sum=sums.recall_sum,
        recall_heads=sums.recall_heads,
    )
