"""Second half of the selection: from the bins to rising positions and the slots where they lie."""

from __future__ import annotations

import triton
import triton.language as tl

from lychee_kernels.hybrid_decode.attend import FIELDS
from lychee_kernels.select_tokens.histogram import find_row, kept_positions


@triton.jit(do_not_specialize=["batch", "writers"])
def compact_kernel(  # type: ignore[no-untyped-def]
    keys_ptr,
    borders_ptr,
    chunk_starts_ptr,
    rows_ptr,
    chunk_ptr_ptr,
    heads_ptr,
    kv_indptr_ptr,
    kv_indices_ptr,
    set_positions_ptr,
    set_slots_ptr,
    batch,
    set_capacity,
    score_capacity,
    chunk_stride,
    max_rows,
    writers,
    CHUNK: tl.constexpr,
    LANES: tl.constexpr,
    WITH_SLOTS: tl.constexpr,
):
    """Writes a chunk's share of its row's set to where it belongs: program by program, chunk by chunk."""
    work = tl.load(chunk_ptr_ptr + batch) * writers
    for item in range(tl.program_id(0), work, tl.num_programs(0)):
        chunk = item // writers
        writer = item % writers
        b, number = find_row(chunk_ptr_ptr, chunk, batch, LANES)
        row = rows_ptr + b * FIELDS
        length, sinks, recent = tl.load(row), tl.load(row + 4), tl.load(row + 5)
        set_start, score_start = tl.load(row + 7), tl.load(row + 8)
        wide = writer.to(tl.int64)
        last = tl.load(borders_ptr + wide * max_rows + b)
        starts = chunk_starts_ptr + (wide * chunk_stride + chunk) * 2
        start, left = tl.load(starts), tl.load(starts + 1)

        position = number * CHUNK + tl.arange(0, CHUNK)
        inside = position < length
        key = tl.load(keys_ptr + wide * score_capacity + score_start + position, mask=inside, other=-1).to(tl.int32)
        above = kept_positions(position, length, sinks, recent) | (key > last)
        tie = (key == last) & (key >= 0)
        # one scan for both: a chunk has less than 2**16 positions
        counted = tl.cumsum((tie.to(tl.int32) << 16) + above.to(tl.int32), 0)
        ties = counted >> 16
        chosen = above | (tie & (ties <= left))
        rank = start + (counted & 65535) + tl.minimum(ties, left) - 1
        root = tl.load(heads_ptr + writer * 4 + 1).to(tl.int64)
        at = root * set_capacity + set_start + rank
        tl.store(set_positions_ptr + at, position, mask=chosen)
        if WITH_SLOTS:
            slot = tl.load(kv_indices_ptr + tl.load(kv_indptr_ptr + b) + position, mask=chosen, other=0)
            tl.store(set_slots_ptr + at, slot, mask=chosen)
