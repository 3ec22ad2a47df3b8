"""`select_tokens` on a GPU, on its own: the two kernels that follow the attention kernel in a decode step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from lychee_kernels.decode_plan.api import PlanRules
from lychee_kernels.decode_plan.triton import plan_decode
from lychee_kernels.hybrid_decode.triton import Launch, compact, row_tables
from lychee_kernels.layout import LayerHeads
from lychee_kernels.select_tokens.histogram import count_weights_kernel
from lychee_kernels.work import BINS, DecodePlan, LayerTable, Row, WorkShape, Workspace, lanes

if TYPE_CHECKING:
    from lychee_kernels.layout import DecodeRows


def select_tokens(
    weights: torch.Tensor, seq_lens: torch.Tensor, rows: DecodeRows, *, chunk: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `lychee_kernels.select_tokens`; the weights of one bin count as equal (histogram.py)."""
    batch, device = len(rows), weights.device
    shape = WorkShape(kv_heads=2, group=1, head_dim=64, block=64, programs=1, chunk=chunk, patterns=(1,))
    layer = LayerTable.build(LayerHeads(writes=(0, -1), reads=(-1, 0)), shape.patterns, device)
    params, values = row_tables(rows, seq_lens)
    plan = DecodePlan.empty(batch, 1, device)
    plan_decode(torch.arange(batch, device=device), seq_lens, params, values, PlanRules(), shape, plan)
    total = int(seq_lens.sum())
    workspace = Workspace.empty(
        shape, max_rows=batch, layers=1, roots=1, writers=1, set_capacity=total, score_capacity=total, device=device
    )
    workspace.histogram.zero_()
    workspace.mass.zero_()
    longest = weights.shape[1]
    weights = weights.float().contiguous()
    count_weights_kernel[(int(plan.chunk_ptr[batch]), 1)](
        weights,
        workspace.keys,
        workspace.histogram,
        workspace.mass,
        workspace.chunk_counts,
        workspace.chunk_mass,
        workspace.finished,
        workspace.borders,
        workspace.chunk_starts,
        workspace.set_counts,
        plan.rows,
        plan.values,
        plan.chunk_ptr,
        batch,
        weights.stride(0),
        workspace.keys.stride(0),
        workspace.histogram.stride(0),
        workspace.chunk_mass.stride(0),
        CHUNK=shape.chunk,
        CHUNKS=max(16, triton.next_power_of_2(-(-longest // shape.chunk))),
        BINS=BINS,
        LANES=lanes(batch),
        num_warps=4,
    )
    compact(layer, plan, workspace, shape, None, batch, launch=Launch(count_programs=64))
    # a row that runs dense because its budget covers the context has everything
    counts = workspace.set_counts[:batch, 0].clone()
    whole = plan.rows[:batch, Row.DENSE].bool() & ~rows.dense
    counts = torch.where(whole, seq_lens.to(torch.int32), torch.where(rows.dense, 0, counts))
    positions = weights.new_full((batch, int(counts.max()) if batch else 0), -1, dtype=torch.int32)
    for b, count in enumerate(counts.tolist()):
        start = int(plan.rows[b, Row.SET_START])
        every = torch.arange(count, dtype=torch.int32, device=device)
        positions[b, :count] = every if whole[b] else workspace.set_positions[0, start : start + count]
    return positions, counts
