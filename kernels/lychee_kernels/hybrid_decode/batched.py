"""A hybrid decode layer for all rows at once, in torch: for batches that the kernels do not take, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lychee_kernels.hybrid_decode.api import HybridDecode
from lychee_kernels.layout import DecodeRows, LayerHeads, Mode, TokenSets
from lychee_kernels.padded import Part, Sums, keep, members, parts
from lychee_kernels.select_tokens.batched import bounds, choose
from lychee_kernels.select_tokens.reference import select_row

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIZED = (Mode.TOPK, Mode.RATIO)


def handed_down(part: Part, heads: LayerHeads, sets: TokenSets, rows: DecodeRows) -> tuple[torch.Tensor, torch.Tensor]:
    """What each head reads by the plan, bool [b, H, n], and which heads are sparse, bool [H]."""
    sparse = torch.tensor([read >= 0 for read in heads.reads], device=part.real.device)
    allowed = part.real[:, None].repeat(1, len(heads.reads), 1)
    readers = [head for head, read in enumerate(heads.reads) if read >= 0]
    if readers:
        roots = [heads.reads[head] for head in readers]
        held = members(sets, part.rows, roots, part.real.shape[1])
        allowed[:, readers] &= held | rows.dense[part.rows, None, None]
    return allowed, sparse


def _select(part: Part, weights: torch.Tensor, heads: LayerHeads, sets: TokenSets, rows: DecodeRows) -> None:
    """Writes the sets of the layer's retrieval heads; weights [b, H, n]."""
    here, modes = part.rows, rows.mode[part.rows].tolist()
    writers = [head for head, write in enumerate(heads.writes) if write >= 0]
    sized = bounds(rows, here, part.lengths, weights.shape[2])
    chosen = choose(weights[:, writers], part.real, sized) & ~rows.dense[here, None, None]
    for column, head in enumerate(writers):
        keep(sets, here, heads.writes[head], chosen[:, column])
    for b, mode in enumerate(modes):
        row = here.start + b
        if mode in _SIZED or bool(rows.dense[row]):
            continue
        asked = (int(rows.budget[row]), float(rows.value[row]), int(rows.sinks[row]), int(rows.recent[row]))
        for head in writers:
            own = weights[b, head, : int(part.lengths[b])]
            sets.write(row, heads.writes[head], select_row(own, Mode(mode), *asked))


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
) -> HybridDecode:
    """See `lychee_kernels.hybrid_decode`; computes in float64 when q is float64, else in float32."""
    grouped = grouped_queries(q, k_buffer.shape[1])
    sums = Sums.empty(grouped)
    for part in rows_of(grouped, k_buffer, v_buffer, kv_indptr, kv_indices, k_scale, v_scale):
        scores = part.scores(grouped[part.rows], sm_scale)
        allowed, sparse = handed_down(part, heads, sets, rows)
        sums.add(part, scores, allowed, sparse, rows)
        if max(heads.writes) >= 0:
            _select(part, scores.softmax(-1).mean(2), heads, sets, rows)
    return decoded(sums, q)


def grouped_queries(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[B, H*G, D] as [B, H, G, D], in the dtype that is computed in."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.reshape(q.shape[0], kv_heads, -1, q.shape[-1]).to(dtype)


def rows_of(
    grouped: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Iterator[Part]:
    """The batch's rows, part by part, in the dtype of the queries."""
    return parts(k_buffer, v_buffer, kv_indptr, kv_indices, k_scale=k_scale, v_scale=v_scale, dtype=grouped.dtype)


def decoded(sums: Sums, q: torch.Tensor) -> HybridDecode:
    """The layer's result in the shapes of q [B, H*G, D]."""
    return HybridDecode(
        out=sums.out.reshape(q.shape).to(q.dtype),
        lse=sums.lse.reshape(q.shape[:2]),
        attended=sums.attended,
        recall_sum=sums.recall_sum,
        recall_heads=sums.recall_heads,
    )
