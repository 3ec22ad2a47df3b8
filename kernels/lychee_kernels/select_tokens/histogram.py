"""First half of the selection: from scores to weights, and from weights to a histogram of their size.

A weight's bin is the top of its float's bits, 32 bins for each factor of two. The last bin begins at or above 1/room,
room being the positions that attention may choose: no more than that many weights are so large, they sum to 1. The
first bin takes all weights that are nearly 16 octaves smaller; over a context of n they sum to less than
n / room * 2**-14. In between, the weights of one bin differ by less than 1/32 of themselves, and bins order as weights
do.

Sets bounded by `top_p` need the large weights as well: their bins are twice as wide, from 2**-32 to 1, and their masses
are exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lychee_kernels.hybrid_decode.attend import FIELDS

THRESHOLD = tl.constexpr(2)
TOP_P = tl.constexpr(3)
MASS_UNIT = tl.constexpr(1099511627776.0)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def kept_positions(position, length, sinks, recent):  # type: ignore[no-untyped-def]
    """Which positions are in every set."""
    return (position < length) & ((position < sinks) | (position >= length - recent))


@triton.jit
def bin_layout(length, bound, sinks, recent, mode, BINS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(room, shift, first): a weight's bin is its bits shifted right by `shift`, less `first`, kept within the bins."""
    room = tl.maximum(bound - tl.minimum(length, sinks + recent), 0)
    # the exponent of a float32 is its base-2 logarithm rounded down
    octave = tl.maximum(room, 1).to(tl.float32).to(tl.int32, bitcast=True) >> 23
    shift = tl.where(mode == TOP_P, 19, 18)
    last = tl.where(mode == TOP_P, 127 * 16, (2 * 127 - octave) * 32)
    return room, shift, last - (BINS - 1)


@triton.jit
def border(counts, masses, room, shift, first, mode, value, kept_mass, BINS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The bin at which the set ends, and how many positions of that bin still belong to it.

    All positions of higher bins are in the set. Where `top_p` ends inside a bin, each of its weights counts as the
    smallest that the bin can hold: the set has at least the mass that was asked for.
    """
    bins = tl.arange(0, BINS)
    at_least = tl.cumsum(counts, 0, reverse=True)
    # by number: the highest bin from which on there are enough
    last = tl.max(tl.where(at_least >= room, bins, -1), 0)
    above = tl.max(tl.where(bins == last + 1, at_least, 0), 0)
    take = tl.where(last >= 0, room - above, 0)
    if mode == TOP_P:
        goal = (value * MASS_UNIT).to(tl.int64)
        held = kept_mass + tl.cumsum(masses, 0, reverse=True)
        p_last = tl.max(tl.where(held >= goal, bins, 0), 0)
        p_above = tl.max(tl.where(bins == p_last + 1, at_least, 0), 0)
        held_above = tl.maximum(kept_mass, tl.max(tl.where(bins == p_last + 1, held, 0), 0))
        smallest = ((p_last + first) << shift).to(tl.float32, bitcast=True).to(tl.float64)
        missing = tl.maximum(goal - held_above, 0).to(tl.float64) / (smallest * MASS_UNIT)
        p_count = tl.sum(tl.where(bins == p_last, counts, 0), 0)
        p_take = tl.minimum(tl.ceil(missing), p_count.to(tl.float64)).to(tl.int32)
        if p_above + p_take < room:
            last = p_last
            take = p_take
    return last, take


@triton.jit
def finish_row(  # type: ignore[no-untyped-def]
    row,
    value,
    row_bins,
    first_chunk,
    row_at,
    histogram_ptr,
    mass_ptr,
    chunk_counts_ptr,
    chunk_mass_ptr,
    borders_ptr,
    chunk_starts_ptr,
    set_count_ptr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
):
    """Finds where a row's set ends, and where in it each chunk's positions begin."""
    length, bound, sinks, recent = tl.load(row), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    mode = tl.load(row + 6)
    room, shift, first_bin = bin_layout(length, bound, sinks, recent, mode, BINS)
    offs = tl.arange(0, BINS)
    chunk = tl.arange(0, CHUNKS)
    there = chunk < tl.cdiv(length, CHUNK)
    counts = tl.load(histogram_ptr + row_bins + offs, cache_modifier=".cg")
    masses = tl.zeros([BINS], dtype=tl.int64)
    kept_mass = tl.sum(tl.zeros([CHUNKS], dtype=tl.int64), 0)
    if mode == TOP_P:
        masses = tl.load(mass_ptr + row_bins + offs, cache_modifier=".cg")
        kept_mass = tl.sum(tl.load(chunk_mass_ptr + first_chunk + chunk, mask=there, other=0, cache_modifier=".cg"), 0)
    last, take = border(counts, masses, room, shift, first_bin, mode, value, kept_mass, BINS)

    here = chunk_counts_ptr + (first_chunk + chunk) * BINS
    above = tl.load(here + last + 1, mask=there & (last + 1 < BINS), other=0, cache_modifier=".cg").to(tl.int32)
    from_last = tl.load(here + last, mask=there & (last >= 0), other=0, cache_modifier=".cg").to(tl.int32)
    ties = tl.where(last >= 0, from_last - above, 0)
    above_end = tl.cumsum(above, 0)
    ties_end = tl.cumsum(ties, 0)
    begin = chunk * CHUNK
    tail = tl.maximum(length - recent, sinks)
    kept_before = tl.minimum(begin, sinks) + tl.maximum(begin - tail, 0)
    start = kept_before + above_end - above + tl.minimum(ties_end - ties, take)
    left = tl.maximum(take - (ties_end - ties), 0)
    starts = chunk_starts_ptr + (first_chunk + chunk) * 2
    tl.store(starts, start, mask=there)
    tl.store(starts + 1, left, mask=there)
    tl.store(borders_ptr + row_at, last)
    whole = tl.minimum(length, sinks + recent) + tl.sum(above, 0) + tl.minimum(tl.sum(ties, 0), take)
    tl.store(set_count_ptr, whole)


@triton.jit
def count_chunk(  # type: ignore[no-untyped-def]
    weight,
    position,
    inside,
    b,
    writer,
    chunk,
    rows_ptr,
    row_values_ptr,
    keys_ptr,
    histogram_ptr,
    mass_ptr,
    chunk_counts_ptr,
    chunk_mass_ptr,
    finished_ptr,
    borders_ptr,
    chunk_starts_ptr,
    set_count_ptr,
    histogram_stride,
    key_stride,
    chunk_stride,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
):
    """Writes a chunk's bins, adds its histogram to the row's, and keeps how many lie in each bin or higher.

    A position that is kept anyway, lies behind the end or is not allowed by a threshold has the bin -1. Whoever counts
    the last chunk of a row finds where the row's set ends.
    """
    row = rows_ptr + b * FIELDS
    length, bound, sinks, recent = tl.load(row), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    mode, score_start = tl.load(row + 6), tl.load(row + 8)
    value = tl.load(row_values_ptr + b)
    _, shift, first = bin_layout(length, bound, sinks, recent, mode, BINS)
    # a NaN compares with nothing: first bin
    bits = tl.where(weight > 0.0, weight, 0.0).to(tl.int32, bitcast=True)
    bins = tl.minimum(tl.maximum((bits >> shift) - first, 0), BINS - 1)
    kept = kept_positions(position, length, sinks, recent)
    others = inside & (kept == 0)
    if mode == THRESHOLD:
        others = others & (weight.to(tl.float64) > value)
    bins = tl.where(others, bins, -1)
    wide = writer.to(tl.int64)
    tl.store(keys_ptr + wide * key_stride + score_start + position, bins.to(tl.int16), mask=inside)
    counts = tl.histogram(tl.maximum(bins, 0), BINS, mask=others)
    offs = tl.arange(0, BINS)
    row_bins = wide * histogram_stride + b * BINS
    tl.atomic_add(histogram_ptr + row_bins + offs, counts, mask=counts > 0, sem="relaxed")
    at = wide * chunk_stride + chunk
    tl.store(chunk_counts_ptr + at * BINS + offs, tl.cumsum(counts, 0, reverse=True).to(tl.int16))
    if mode == TOP_P:
        # whole numbers add up to the same in any order
        units = (tl.where(weight > 0.0, weight, 0.0).to(tl.float64) * MASS_UNIT).to(tl.int64)
        tl.atomic_add(mass_ptr + row_bins + tl.maximum(bins, 0), units, mask=others, sem="relaxed")
        tl.store(chunk_mass_ptr + at, tl.sum(tl.where(kept & inside, units, 0), 0))

    # all threads' stores come before the one thread's addition, and that before the reads of whoever is last
    tl.debug_barrier()
    row_at = wide * (histogram_stride // BINS) + b
    done = tl.atomic_add(finished_ptr + row_at, 1, sem="acq_rel")
    if done == tl.cdiv(length, CHUNK) - 1:
        first_chunk = wide * chunk_stride + chunk - tl.min(position, 0) // CHUNK
        finish_row(
            row, value, row_bins, first_chunk, row_at, histogram_ptr, mass_ptr, chunk_counts_ptr, chunk_mass_ptr,
            borders_ptr, chunk_starts_ptr, set_count_ptr, CHUNK, CHUNKS, BINS,
        )  # fmt: skip


@triton.jit
def find_row(chunk_ptr_ptr, chunk, batch, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The row that a chunk belongs to, and the chunk's number in it."""
    lane = tl.arange(0, LANES)
    ends = tl.load(chunk_ptr_ptr + 1 + lane, mask=lane < batch, other=2147483647)
    b = tl.sum((ends <= chunk).to(tl.int32), 0)
    return b, chunk - tl.load(chunk_ptr_ptr + b)


@triton.jit(do_not_specialize=["batch", "roots", "writers"])
def count_scores_kernel(  # type: ignore[no-untyped-def]
    scores_ptr,
    lse_ptr,
    keys_ptr,
    histogram_ptr,
    mass_ptr,
    chunk_counts_ptr,
    chunk_mass_ptr,
    finished_ptr,
    borders_ptr,
    chunk_starts_ptr,
    set_counts_ptr,
    rows_ptr,
    row_values_ptr,
    heads_ptr,
    chunk_ptr_ptr,
    batch,
    score_capacity,
    histogram_stride,
    chunk_stride,
    roots,
    writers,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Weighs the scores that the attention kernel has left, chunk by chunk."""
    work = tl.load(chunk_ptr_ptr + batch) * writers
    for item in range(tl.program_id(0), work, tl.num_programs(0)):
        chunk = item // writers
        writer = item % writers
        b, first = find_row(chunk_ptr_ptr, chunk, batch, LANES)
        position = first * CHUNK + tl.arange(0, CHUNK)
        inside = position < tl.load(rows_ptr + b * FIELDS)
        scores = scores_ptr + writer.to(tl.int64) * GROUP * score_capacity + tl.load(rows_ptr + b * FIELDS + 8)
        head_row = heads_ptr + writer * 4
        lses = lse_ptr + (b * HEADS + tl.load(head_row)) * GROUP
        weight = tl.zeros([CHUNK], dtype=tl.float32)
        for g in tl.static_range(GROUP):
            score = tl.load(scores + g * score_capacity.to(tl.int64) + position, mask=inside, other=0.0)
            weight += tl.exp2(score.to(tl.float32) - tl.load(lses + g) * LOG2_E)
        count_chunk(
            weight * (1.0 / GROUP), position, inside, b, writer, chunk, rows_ptr, row_values_ptr, keys_ptr,
            histogram_ptr, mass_ptr, chunk_counts_ptr, chunk_mass_ptr, finished_ptr, borders_ptr, chunk_starts_ptr,
            set_counts_ptr + b * roots + tl.load(head_row + 1), histogram_stride, score_capacity, chunk_stride, CHUNK,
            CHUNKS, BINS,
        )  # fmt: skip


@triton.jit
def count_weights_kernel(  # type: ignore[no-untyped-def]
    weights_ptr,
    keys_ptr,
    histogram_ptr,
    mass_ptr,
    chunk_counts_ptr,
    chunk_mass_ptr,
    finished_ptr,
    borders_ptr,
    chunk_starts_ptr,
    set_counts_ptr,
    rows_ptr,
    row_values_ptr,
    chunk_ptr_ptr,
    batch,
    weight_stride,
    score_capacity,
    histogram_stride,
    chunk_stride,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The same from weights that somebody else has computed, one set a row: `select_tokens` on its own."""
    chunk = tl.program_id(0)
    if chunk < tl.load(chunk_ptr_ptr + batch):
        b, first = find_row(chunk_ptr_ptr, chunk, batch, LANES)
        position = first * CHUNK + tl.arange(0, CHUNK)
        inside = position < tl.load(rows_ptr + b * FIELDS)
        weight = tl.load(weights_ptr + b.to(tl.int64) * weight_stride + position, mask=inside, other=0.0)
        count_chunk(
            weight.to(tl.float32), position, inside, b, tl.program_id(1), chunk, rows_ptr, row_values_ptr, keys_ptr,
            histogram_ptr, mass_ptr, chunk_counts_ptr, chunk_mass_ptr, finished_ptr, borders_ptr, chunk_starts_ptr,
            set_counts_ptr + b, histogram_stride, score_capacity, chunk_stride, CHUNK, CHUNKS, BINS,
        )  # fmt: skip
