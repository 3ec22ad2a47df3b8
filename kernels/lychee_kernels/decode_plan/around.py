"""What a server does on the device before and after a planned step: take a snapshot of the slots, and report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from lychee_kernels.decode_plan.api import Report

if TYPE_CHECKING:
    from lychee_kernels.work import DecodePlan, WorkShape, Workspace

FIELDS = tl.constexpr(16)
TOKENS = 2048


@triton.jit(do_not_specialize=["table_stride"])
def _snapshot_kernel(  # type: ignore[no-untyped-def]
    req_to_token_ptr, req_pool_indices_ptr, rows_ptr, kv_indptr_ptr, kv_indices_ptr, table_stride, TOKENS: tl.constexpr
):
    b = tl.program_id(0)
    length = tl.load(rows_ptr + b * FIELDS)
    request = tl.load(req_pool_indices_ptr + b).to(tl.int64)
    start = tl.load(kv_indptr_ptr + b)
    position = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    slots = tl.load(req_to_token_ptr + request * table_stride + position, mask=position < length, other=0)
    tl.store(kv_indices_ptr + start + position, slots, mask=position < length)


def snapshot_slots(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    plan: DecodePlan,
    kv_indices: torch.Tensor,
    *,
    longest: int,
) -> None:
    """Copies the slots of all rows' contexts, so that the step no longer reads a table that a scheduler rewrites.

    Args:
        req_to_token: int32 [max_reqs + 1, contexts], a request's slots.
        req_pool_indices: [B].
        plan: of this step.
        kv_indices: int32, overwritten; the slot of position p of row b comes to `plan.kv_indptr[b] + p`.
        longest: no row has more tokens.
    """
    _snapshot_kernel[(len(req_pool_indices), triton.cdiv(longest, TOKENS))](
        req_to_token, req_pool_indices, plan.rows, plan.kv_indptr, kv_indices, req_to_token.stride(0), TOKENS=TOKENS
    )


@triton.jit(do_not_specialize=["roots", "retrieval", "sparse_queries", "recalls"])
def _report_kernel(  # type: ignore[no-untyped-def]
    out_ptr, rows_ptr, counts_ptr, readers_ptr, recall_ptr, roots, retrieval, heads, sparse_queries, recalls,
    ROOTS: tl.constexpr, RECALLS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    row = rows_ptr + b * FIELDS
    length, dense, audit = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    root = tl.arange(0, ROOTS)
    counts = tl.load(counts_ptr + b * roots + root, mask=root < roots, other=0).to(tl.int64)
    readers = tl.load(readers_ptr + root, mask=root < roots, other=0)
    sparse = length.to(tl.int64) * retrieval + tl.sum(counts * readers, 0)
    attended = tl.where(dense != 0, length.to(tl.int64) * heads, sparse)
    mass = 0.0
    if audit != 0:
        for at in range(0, recalls, RECALLS):
            n = at + tl.arange(0, RECALLS)
            mass += tl.sum(tl.load(recall_ptr + b.to(tl.int64) * recalls + n, mask=n < recalls, other=0.0), 0)
    batch = tl.num_programs(0)
    out = out_ptr + b
    tl.store(out, attended.to(tl.float64))
    # a plan without sparse heads has nothing whose recall could be measured
    measured = (audit != 0) & (sparse_queries > 0)
    recall = tl.where(measured, mass / tl.maximum(sparse_queries, 1), float("nan"))
    tl.store(out + batch, recall.to(tl.float64))
    tl.store(out + 2 * batch, tl.load(row + 9).to(tl.float64))
    tl.store(out + 3 * batch, tl.load(row + 10).to(tl.float64))
    tl.store(out + 4 * batch, length.to(tl.float64))


def report_step(
    plan: DecodePlan,
    workspace: Workspace,
    shape: WorkShape,
    readers: torch.Tensor,
    retrieval: int,
    batch: int,
    *,
    sparse_heads: int | None = None,
) -> torch.Tensor:
    """Adds up what the step's rows have read and how much mass their sets held.

    Args:
        plan: of the step.
        workspace: with the step's sets and recalls; entries of heads that are not sparse must be 0.
        shape: what the plan was made for.
        readers: int64 [R], how many sparse heads read each root's set.
        retrieval: retrieval heads of all layers.
        batch: rows.
        sparse_heads: over which recall is a mean; those here by default. Where other devices have others, all of them:
            the devices' recalls then add up to the mean over all.

    Returns:
        float64 [5, batch], lines as in `Report`.
    """
    layers = workspace.recall.shape[1]
    heads = layers * shape.kv_heads
    sparse_heads = heads - retrieval if sparse_heads is None else sparse_heads
    out = torch.empty((len(Report), batch), dtype=torch.float64, device=plan.rows.device)
    _report_kernel[(batch,)](
        out,
        plan.rows,
        workspace.set_counts,
        readers,
        workspace.recall,
        workspace.set_counts.shape[1],
        retrieval,
        heads,
        sparse_heads * shape.group,
        workspace.recall.stride(0),
        ROOTS=triton.next_power_of_2(workspace.set_counts.shape[1]),
        RECALLS=1024,
    )
    return out
