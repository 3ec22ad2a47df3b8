"""The attention kernel: every head's list of tokens in one launch, cut into equal spans (work.py).

Retrieval heads leave their scores behind, so that selection needs no second look at their keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIELDS = tl.constexpr(16)  # columns of DecodePlan.rows
NEG_INF = tl.constexpr(float("-inf"))


@triton.jit
def row_layout(rows_ptr, b, retrieval, BLOCK: tl.constexpr, HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sections of a row: (length, bound, readers of everything, blocks of theirs, followers, blocks of theirs).

    `readers` is H in a dense row, where nobody follows.
    """
    row = rows_ptr + b * FIELDS
    length = tl.load(row)
    dense = tl.load(row + 1)
    bound = tl.load(row + 3)
    readers = tl.where(dense != 0, HEADS, retrieval)
    full = tl.cdiv(length, BLOCK)
    chosen = tl.where(dense != 0, 0, tl.cdiv(bound, BLOCK))
    return length, dense, readers, full, chosen


@triton.jit
def _fold(  # type: ignore[no-untyped-def]
    q,
    slot,
    mask,
    k_ptr,
    v_ptr,
    slot_stride,
    offs_d,
    scale,
    acc,
    total,
    top,
    WITH_VALUES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of tokens folded into a running softmax in base 2; returns the block's scores too."""
    at = slot.to(tl.int64) * slot_stride
    k = tl.load(k_ptr + at[None, :] + offs_d[:, None], mask=mask[None, :], other=0.0)
    scores = tl.dot(q, k.to(q.dtype), input_precision=PRECISION) * scale
    scores = tl.where(mask[None, :], scores, NEG_INF)
    new_top = tl.maximum(top, tl.max(scores, 1))
    # a block may hold nothing but -inf: keep its exponents finite
    safe = tl.where(new_top == NEG_INF, 0.0, new_top)
    p = tl.exp2(scores - safe[:, None])
    shrink = tl.exp2(top - safe)
    # summed over the columns at the end: a sum here would be a barrier more in every block
    total = total * shrink[:, None] + p
    if WITH_VALUES:
        v = tl.load(v_ptr + at[:, None] + offs_d[None, :], mask=mask[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(p.to(q.dtype), v.to(q.dtype), input_precision=PRECISION)
    return scores, acc, total, new_top


@triton.jit
def _to_half(q, scale):  # type: ignore[no-untyped-def]
    """Queries for keys of eight bits: float16 holds those exactly, and turning them into it is one instruction for two.

    Each query is divided by the power of two of its largest entry, so that float16 holds it, too; the factor of its
    scores [GROUP_PAD, 1] makes up for that.
    """
    wide = q.to(tl.float32)
    top = tl.max(tl.abs(wide), 1)
    power = (top.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    power = tl.where(power > 0.0, power, 1.0)
    return (wide / power[:, None]).to(tl.float16), (scale * power)[:, None]


@triton.jit
def _clear(  # type: ignore[no-untyped-def]
    histogram_ptr, mass_ptr, finished_ptr, histogram_stride, rows, BINS: tl.constexpr
):
    """Empties what the selection of this layer counts into; `rows` is rows times writers, shared by all programs."""
    bins = tl.arange(0, BINS)
    batch, writers = rows
    for z in range(tl.program_id(0), writers * batch, tl.num_programs(0)):
        at = (z // batch) * histogram_stride + (z % batch) * BINS
        tl.store(histogram_ptr + at + bins, tl.zeros_like(bins))
        tl.store(mass_ptr + at + bins, tl.zeros([BINS], dtype=tl.int64))
        tl.store(finished_ptr + at // BINS, 0)


@triton.jit
def _locate(  # type: ignore[no-untyped-def]
    y, item, readers, full, chosen, span, HEADS: tl.constexpr, AUDITS: tl.constexpr
):
    """What block y of a row is: (section, first head, j, item, blocks before, the item's blocks, its place in them).

    Sections: 0 readers of everything, 1 followers of sets, 2 audit of the followers. `item` is the row's first; j
    counts the section's heads.
    """
    followers = HEADS - readers
    section = 0
    first_head = 0
    members = readers
    blocks = full
    if y >= readers * full:
        y -= readers * full
        item += readers * tl.cdiv(full, span)
        section = 1
        first_head = readers
        members = followers
        blocks = chosen
        if AUDITS and y >= followers * chosen:
            y -= followers * chosen
            item += followers * tl.cdiv(chosen, span)
            section = 2
            blocks = full
    split = y // (members * span)
    rest = y - split * members * span
    item_blocks = tl.minimum(span, blocks - split * span)
    j = rest // item_blocks
    return section, first_head, j, item + split * members + j, split * span, item_blocks, rest - j * item_blocks


@triton.jit(do_not_specialize=["batch", "retrieval", "writers", "roots", "set_capacity"])
def attend_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    partial_ptr,
    partial_lse_ptr,
    scores_ptr,
    histogram_ptr,
    mass_ptr,
    finished_ptr,
    rows_ptr,
    kv_indptr_ptr,
    kv_indices_ptr,
    set_slots_ptr,
    set_counts_ptr,
    heads_ptr,
    block_ptr_ptr,
    item_ptr_ptr,
    span_ptr,
    batch,
    scale,
    slot_stride,
    set_capacity,
    score_capacity,
    roots,
    histogram_stride,
    retrieval,
    writers,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    WRITES: tl.constexpr,
    LANES: tl.constexpr,
    BINS: tl.constexpr,
    AUDITS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program's span of a layer's blocks: item after item, a running softmax over each one's tokens."""
    pid = tl.program_id(0)
    offs_g = tl.arange(0, GROUP_PAD)
    offs_d = tl.arange(0, HEAD_DIM)
    offs_n = tl.arange(0, BLOCK)
    lane = tl.arange(0, LANES)
    in_group = offs_g < GROUP

    if WRITES:
        _clear(histogram_ptr, mass_ptr, finished_ptr, histogram_stride, (batch, writers), BINS)
    span = tl.load(span_ptr)
    ends = tl.load(block_ptr_ptr + 1 + lane, mask=lane < batch, other=2147483647)
    x = pid * span
    stop = tl.minimum(x + span, tl.load(block_ptr_ptr + batch))
    while x < stop:
        b = tl.sum((ends <= x).to(tl.int32), 0)
        length, dense, readers, full, chosen = row_layout(rows_ptr, b, retrieval, BLOCK, HEADS)
        section, first_head, j, item, before, item_blocks, offset = _locate(
            x - tl.load(block_ptr_ptr + b), tl.load(item_ptr_ptr + b), readers, full, chosen, span, HEADS, AUDITS
        )
        take = tl.minimum(item_blocks - offset, stop - x)
        head_row = heads_ptr + (first_head + j) * 4
        head = tl.load(head_row)
        writes = tl.where((section == 0) & (dense == 0), tl.load(head_row + 1), -1)
        lo = (before + offset) * BLOCK
        hi = lo + take * BLOCK
        kv_start = tl.load(kv_indptr_ptr + b)
        slots_ptr = kv_indices_ptr + kv_start
        if section == 1:
            root = tl.load(head_row + 2)
            set_start = tl.load(rows_ptr + b * FIELDS + 7)
            slots_ptr = set_slots_ptr + root.to(tl.int64) * set_capacity + set_start
            hi = tl.minimum(hi, tl.load(set_counts_ptr + b * roots + root))
        else:
            hi = tl.minimum(hi, length)

        q_at = (b * HEADS + head) * GROUP * HEAD_DIM
        q = tl.load(q_ptr + q_at + offs_g[:, None] * HEAD_DIM + offs_d[None, :], mask=in_group[:, None], other=0.0)
        factor = scale
        if k_ptr.dtype.element_ty.is_fp8():
            q, factor = _to_half(q, scale)
        keys = k_ptr + head * HEAD_DIM
        values = v_ptr + head * HEAD_DIM
        acc = tl.zeros([GROUP_PAD, HEAD_DIM], dtype=tl.float32)
        total = tl.zeros([GROUP_PAD, BLOCK], dtype=tl.float32)
        top = tl.full([GROUP_PAD], NEG_INF, dtype=tl.float32)
        if section == 2:
            for start in tl.range(lo, hi, BLOCK, num_stages=STAGES):
                mask = start + offs_n < hi
                slot = tl.load(slots_ptr + start + offs_n, mask=mask, other=0)
                _, acc, total, top = _fold(
                    q, slot, mask, keys, values, slot_stride, offs_d, factor, acc, total, top, False, PRECISION
                )
        else:
            if WRITES:
                # writers come first among the heads, so j is also the writer's place in the scores
                score_start = tl.load(rows_ptr + b * FIELDS + 8)
                out = scores_ptr + (j * GROUP + offs_g).to(tl.int64)[:, None] * score_capacity + score_start
                for start in tl.range(lo, hi, BLOCK, num_stages=STAGES):
                    mask = start + offs_n < hi
                    slot = tl.load(slots_ptr + start + offs_n, mask=mask, other=0)
                    scores, acc, total, top = _fold(
                        q, slot, mask, keys, values, slot_stride, offs_d, factor, acc, total, top, True, PRECISION
                    )
                    keep = in_group[:, None] & mask[None, :] & (writes >= 0)
                    tl.store(out + (start + offs_n)[None, :], scores.to(scores_ptr.dtype.element_ty), mask=keep)
            else:
                for start in tl.range(lo, hi, BLOCK, num_stages=STAGES):
                    mask = start + offs_n < hi
                    slot = tl.load(slots_ptr + start + offs_n, mask=mask, other=0)
                    _, acc, total, top = _fold(
                        q, slot, mask, keys, values, slot_stride, offs_d, factor, acc, total, top, True, PRECISION
                    )

        total = tl.sum(total, 1)
        place = item * 2 + tl.where(offset > 0, 1, 0)
        lse = tl.where(total > 0.0, top + tl.log2(tl.where(total > 0.0, total, 1.0)), NEG_INF)
        tl.store(partial_lse_ptr + place * GROUP + offs_g, lse, mask=in_group)
        if section != 2:
            acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
            at = (place * GROUP + offs_g[:, None]) * HEAD_DIM + offs_d[None, :]
            tl.store(partial_ptr + at, acc, mask=in_group[:, None])
        if (offset == 0) & (take == item_blocks):
            # nobody comes for the second half of this item
            tl.store(
                partial_lse_ptr + (place + 1) * GROUP + offs_g, tl.full([GROUP_PAD], NEG_INF, tl.float32), mask=in_group
            )
        x += take
