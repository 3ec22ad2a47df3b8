"""Puts the parts of every list together: output, log-sum-exp and, for audited rows, recall."""

from __future__ import annotations

import triton
import triton.language as tl

from lychee_kernels.hybrid_decode.attend import FIELDS, NEG_INF, row_layout

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def list_layout(  # type: ignore[no-untyped-def]
    rows_ptr, item_ptr_ptr, span, b, place, retrieval, BLOCK: tl.constexpr, HEADS: tl.constexpr
):
    """Where the items of a list lie: (first item, step between items, items) and the same of its audit.

    `place` counts the layer's heads in the order of its table: readers of everything first.
    """
    _, _, readers, full, chosen = row_layout(rows_ptr, b, retrieval, BLOCK, HEADS)
    first = tl.load(item_ptr_ptr + b)
    followers = HEADS - readers
    reads_all = place < readers
    full_items = tl.cdiv(full, span)
    chosen_items = tl.cdiv(chosen, span)
    follower_first = first + readers * full_items
    j = place - readers
    start = tl.where(reads_all, first + place, follower_first + j)
    step = tl.where(reads_all, readers, followers)
    items = tl.where(reads_all, full_items, chosen_items)
    audit_start = follower_first + followers * chosen_items + j
    return start, step, items, audit_start, full_items, reads_all


@triton.jit
def list_lse(  # type: ignore[no-untyped-def]
    partial_lse_ptr, start, step, items, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, PARTS: tl.constexpr
):
    """Base-2 log-sum-exps [GROUP_PAD] of a group over a list, from its parts; PARTS at a time."""
    part = tl.arange(0, PARTS)
    g = tl.arange(0, GROUP_PAD)
    top = tl.full([GROUP_PAD], NEG_INF, tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    for at in range(0, 2 * items, PARTS):
        n = at + part
        row = (start + (n // 2) * step) * 2 + n % 2
        there = (n < 2 * items)[:, None] & (g < GROUP)[None, :]
        lse = tl.load(partial_lse_ptr + row[:, None] * GROUP + g[None, :], mask=there, other=NEG_INF)
        new_top = tl.maximum(top, tl.max(lse, 0))
        safe = tl.where(new_top == NEG_INF, 0.0, new_top)
        total = total * tl.exp2(top - safe) + tl.sum(tl.exp2(lse - safe[None, :]), 0)
        top = new_top
    return tl.where(total > 0.0, top + tl.log2(tl.where(total > 0.0, total, 1.0)), NEG_INF)


@triton.jit(do_not_specialize=["retrieval"])
def merge_kernel(  # type: ignore[no-untyped-def]
    out_ptr,
    lse_ptr,
    recall_ptr,
    partial_ptr,
    partial_lse_ptr,
    rows_ptr,
    heads_ptr,
    item_ptr_ptr,
    span_ptr,
    recall_stride,
    retrieval,
    value_scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AUDITS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """One query head of one row, COLUMNS of its output: program (row and head, columns)."""
    pid = tl.program_id(0)
    span = tl.load(span_ptr)
    b = pid // (HEADS * GROUP)
    place = (pid // GROUP) % HEADS
    g = pid % GROUP
    head = tl.load(heads_ptr + place * 4)
    start, step, items, audit_start, full_items, reads_all = list_layout(
        rows_ptr, item_ptr_ptr, span, b, place, retrieval, BLOCK, HEADS
    )
    part = tl.arange(0, PARTS)
    offs_d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros([COLUMNS], dtype=tl.float32)
    top = NEG_INF
    total = 0.0
    for at in range(0, 2 * items, PARTS):
        n = at + part
        live = n < 2 * items
        slot = ((start + (n // 2) * step) * 2 + n % 2) * GROUP + g
        lse = tl.load(partial_lse_ptr + slot, mask=live, other=NEG_INF)
        values = tl.load(partial_ptr + slot[:, None] * HEAD_DIM + offs_d[None, :], mask=live[:, None], other=0.0)
        # what nobody wrote may be anything, NaN too
        values = tl.where((lse != NEG_INF)[:, None], values, 0.0)
        new_top = tl.maximum(top, tl.max(lse, 0))
        safe = tl.where(new_top == NEG_INF, 0.0, new_top)
        weight = tl.exp2(lse - safe)
        shrink = tl.exp2(top - safe)
        acc = acc * shrink + tl.sum(values * weight[:, None], 0)
        total = total * shrink + tl.sum(weight, 0)
        top = new_top
    head_at = (b * HEADS + head) * GROUP + g
    result = acc / tl.where(total > 0.0, total, 1.0)
    if SCALED:
        result *= value_scale
    tl.store(out_ptr + head_at * HEAD_DIM + offs_d, result.to(out_ptr.dtype.element_ty))
    if tl.program_id(1) == 0:
        lse_all = tl.where(total > 0.0, top + tl.log2(tl.where(total > 0.0, total, 1.0)), NEG_INF)
        tl.store(lse_ptr + head_at, lse_all * LN_2)
        if AUDITS and (reads_all == 0) & (tl.load(rows_ptr + b * FIELDS + 2) != 0):
            wholes = list_lse(partial_lse_ptr, audit_start, step, full_items, GROUP, GROUP_PAD, PARTS)
            offs_g = tl.arange(0, GROUP_PAD)
            whole = tl.max(tl.where(offs_g == g, wholes, NEG_INF), 0)
            tl.store(recall_ptr + b * recall_stride + head * GROUP + g, tl.exp2(lse_all - whole))
