"""A step's decisions and partition in one launch: a program for each pattern, a lane for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from lychee_kernels.work import lanes

if TYPE_CHECKING:
    import torch

    from lychee_kernels.decode_plan.api import PlanRules
    from lychee_kernels.work import DecodePlan, WorkShape

# columns of the tables, as the kernels see them; tests hold them to `Param`, `Row`, `Mode` and `Fallback`
PARAMS = tl.constexpr(5)
FIELDS = tl.constexpr(16)
RATIO = tl.constexpr(1)


@triton.jit
def _decide(params_ptr, values_ptr, slot, length, live, dense_below, recall_every):  # type: ignore[no-untyped-def]
    """DESIGN.md 2.2 for a lane of rows; the same lines as in the reference."""
    row = params_ptr + slot.to(tl.int64) * PARAMS
    mode = tl.load(row, mask=live, other=0)
    budget = tl.load(row + 1, mask=live, other=-1)
    sinks = tl.load(row + 2, mask=live, other=0)
    recent = tl.load(row + 3, mask=live, other=0)
    prompt = tl.load(row + 4, mask=live, other=0)
    value = tl.load(values_ptr + slot, mask=live, other=0.0)
    wants_dense = budget == -1
    bound = tl.where(budget > 0, tl.minimum(budget, length), length)
    share = tl.maximum(tl.ceil(value * length.to(tl.float64) - 1e-9).to(tl.int32), 1)
    bound = tl.where(mode == RATIO, tl.minimum(bound, share), bound)
    short = (budget != -1) & (length <= dense_below)
    covers = (budget != -1) & (length > dense_below) & (mode <= RATIO) & (bound >= length)
    dense = wants_dense | short | covers
    fallback = short.to(tl.int32) + 2 * covers.to(tl.int32)
    every = tl.maximum(recall_every, 1)
    audit = (recall_every > 0) & ((length - prompt - 1) % every == 0)
    return mode, value, sinks, recent, bound, dense, fallback, audit, wants_dense


@triton.jit
def _plan_kernel(  # type: ignore[no-untyped-def]
    req_pool_indices_ptr,
    seq_lens_ptr,
    params_ptr,
    values_ptr,
    rows_ptr,
    row_values_ptr,
    kv_indptr_ptr,
    chunk_ptr_ptr,
    block_ptr_ptr,
    item_ptr_ptr,
    span_ptr,
    patterns_ptr,
    batch,
    ptr_stride,
    dense_below,
    recall_every,
    set_capacity,
    score_capacity,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    PROGRAMS: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    live = lane < batch
    slot = tl.load(req_pool_indices_ptr + lane, mask=live, other=0)
    length = tl.load(seq_lens_ptr + lane, mask=live, other=0).to(tl.int32)
    mode, value, sinks, recent, bound, dense, fallback, audit, wants_dense = _decide(
        params_ptr, values_ptr, slot, length, live, dense_below, recall_every
    )
    reported = tl.where(wants_dense, -1, bound)
    sparse = live & (dense == 0)
    # prefix sums in 64 bits: contexts that share a prefix count each
    want_set = tl.where(sparse, bound, 0).to(tl.int64)
    want_score = tl.where(sparse, length, 0).to(tl.int64)
    set_end = tl.cumsum(want_set, 0)
    score_end = tl.cumsum(want_score, 0)
    crowded = sparse & ((set_end > set_capacity) | (score_end > score_capacity))
    fallback = tl.where(crowded, 3, fallback)
    dense = dense | crowded
    sparse = sparse & (crowded == 0)
    audit = audit & sparse
    bound = tl.where(dense, length, bound)
    set_start = tl.where(sparse, set_end - want_set, 0).to(tl.int32)
    score_start = tl.where(sparse, score_end - want_score, 0).to(tl.int32)

    pattern = tl.program_id(0)
    retrieval = tl.load(patterns_ptr + pattern)
    full = tl.cdiv(length, BLOCK)
    chosen = tl.where(sparse, tl.cdiv(bound, BLOCK), 0)
    readers = tl.where(dense, HEADS, retrieval + tl.where(audit, HEADS - retrieval, 0))
    readers = tl.where(live, readers, 0)
    followers = tl.where(sparse, HEADS - retrieval, 0)
    blocks = readers * full + followers * chosen
    span = tl.maximum(tl.cdiv(tl.sum(blocks, 0), PROGRAMS), 1)
    items = readers * tl.cdiv(full, span) + followers * tl.cdiv(chosen, span)
    tl.store(span_ptr + pattern, span)
    at = pattern * ptr_stride + lane
    tl.store(block_ptr_ptr + at + 1, tl.cumsum(blocks, 0), mask=live)
    tl.store(item_ptr_ptr + at + 1, tl.cumsum(items, 0), mask=live)
    tl.store(block_ptr_ptr + at, tl.zeros_like(lane), mask=lane == 0)
    tl.store(item_ptr_ptr + at, tl.zeros_like(lane), mask=lane == 0)

    if pattern == 0:
        kept = (bound.to(tl.int64) * 3) // 4
        wanted = (sinks + recent).to(tl.int64)
        shrink = (bound < length) & (wanted > kept)
        less = (kept * sinks // tl.maximum(wanted, 1)).to(tl.int32)
        recent = tl.where(shrink, kept.to(tl.int32) - less, recent)
        sinks = tl.where(shrink, less, sinks)
        out = rows_ptr + lane * FIELDS
        tl.store(out, length, mask=live)
        tl.store(out + 1, dense.to(tl.int32), mask=live)
        tl.store(out + 2, audit.to(tl.int32), mask=live)
        tl.store(out + 3, bound, mask=live)
        tl.store(out + 4, tl.minimum(sinks, length), mask=live)
        tl.store(out + 5, tl.minimum(tl.maximum(recent, 1), length), mask=live)
        tl.store(out + 6, mode, mask=live)
        tl.store(out + 7, set_start, mask=live)
        tl.store(out + 8, score_start, mask=live)
        tl.store(out + 9, fallback, mask=live)
        tl.store(out + 10, reported, mask=live)
        tl.store(row_values_ptr + lane, value, mask=live)
        chunks = tl.where(sparse, tl.cdiv(length, CHUNK), 0)
        tl.store(kv_indptr_ptr + lane + 1, tl.cumsum(length, 0), mask=live)
        tl.store(chunk_ptr_ptr + lane + 1, tl.cumsum(chunks, 0), mask=live)
        tl.store(kv_indptr_ptr + lane, tl.zeros_like(lane), mask=lane == 0)
        tl.store(chunk_ptr_ptr + lane, tl.zeros_like(lane), mask=lane == 0)


def plan_decode(
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    params: torch.Tensor,
    values: torch.Tensor,
    rules: PlanRules,
    shape: WorkShape,
    plan: DecodePlan,
    patterns: torch.Tensor | None = None,
) -> None:
    """See `lychee_kernels.decode_plan.plan_decode`; one launch, no host round trip.

    `patterns` is `shape.patterns` on the device; a caller that captures CUDA graphs keeps it there.
    """
    batch = len(seq_lens)
    if patterns is None:
        patterns = plan.span.new_tensor(shape.patterns)
    _plan_kernel[(len(shape.patterns),)](
        req_pool_indices,
        seq_lens,
        params,
        values,
        plan.rows,
        plan.values,
        plan.kv_indptr,
        plan.chunk_ptr,
        plan.block_ptr,
        plan.item_ptr,
        plan.span,
        patterns,
        batch,
        plan.block_ptr.stride(0),
        rules.dense_below,
        rules.recall_every,
        rules.set_capacity,
        rules.score_capacity,
        HEADS=shape.kv_heads,
        BLOCK=shape.block,
        CHUNK=shape.chunk,
        PROGRAMS=shape.programs,
        LANES=lanes(len(plan.rows)),
        num_warps=4,
    )
