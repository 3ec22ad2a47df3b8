"""The CPU's decode layer as compiled loops (numba): what `lychee_kernels.hybrid_decode` defines, the pool read once.

Legend: B rows, H KV heads, G query heads of a group, D head size, R roots, C capacity. bfloat16 comes in as its bits
(uint16), which are the upper half of a float32. G and D are compile-time constants: the inner loops then unroll and
vectorise, which is worth a factor of three.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, types
from numba.extending import overload

if TYPE_CHECKING:
    from collections.abc import Callable

# Sums may be reordered (that is what vectorises them); NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True}
TOPK, RATIO, THRESHOLD, TOP_P = 0, 1, 2, 3


def _widen(x: Any) -> Any:
    """Stands for the overload below, which is all that compiled code sees."""
    raise NotImplementedError


@overload(_widen, inline="always", strict=False)  # strict would compare annotations, too
def _overload_widen(x: Any) -> Callable[[Any], Any]:
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@njit(**OPTIONS)
def _bound(mode: int, budget: int, value: float, length: int) -> int:
    bound = budget if budget > 0 else length
    if mode == RATIO:
        bound = min(bound, math.ceil(value * length - 1e-9))
    return max(1, min(bound, length))


@njit(**OPTIONS)
def _wanted(mode: int, value: float, kept_mass: float, others: np.ndarray, room: int) -> int:
    """How many of `others` (weights, any order) the mode asks for, at most `room`."""
    if mode == THRESHOLD:
        above = 0
        for i in range(others.size):
            above += others[i] > value
        return min(room, above)
    if mode == TOP_P:
        if kept_mass >= value:
            return 0
        falling = np.sort(others)[::-1]
        mass = kept_mass
        for i in range(falling.size):
            mass += max(falling[i], np.float32(0.0))
            if mass >= value:
                return min(room, i + 1)
        return min(room, falling.size)
    return min(room, others.size)


@njit(**OPTIONS)
def select_row(
    weights: np.ndarray,
    mode: int,
    budget: int,
    value: float,
    sinks: int,
    recent: int,
    others: np.ndarray,
    chosen: np.ndarray,
) -> int:
    """Selects one row's set; the definition is `lychee_kernels.select_tokens.reference.select_row`.

    Args:
        weights: float32 [n].
        mode: as in `lychee_kernels.layout.Mode`.
        budget: tokens; 0 for no bound.
        value: the fraction of a mode that needs one.
        sinks: first positions kept.
        recent: last positions kept.
        others: float32 scratch of at least n.
        chosen: int32, receives the rising positions; as long as the largest set.

    Returns:
        The size of the set.
    """
    n = weights.size
    bound = _bound(mode, budget, value, n)
    if bound >= n and mode <= RATIO:
        for i in range(n):
            chosen[i] = i
        return n
    if bound < n:
        kept = 3 * bound // 4
        if sinks + recent > kept:
            sinks_kept = kept * sinks // (sinks + recent)
            recent, sinks = kept - sinks_kept, sinks_kept
    first, last = min(sinks, n), max(n - max(recent, 1), 0)
    first = min(first, last)
    # [0, first) and [last, n) are kept; what lies between competes
    kept_mass = 0.0
    for i in range(n):
        if (i < first or i >= last) and weights[i] == weights[i]:
            kept_mass += weights[i]
    size = last - first
    for i in range(size):
        w = weights[first + i]
        others[i] = w if w == w else np.float32(-1.0)  # NaN orders behind every weight
    wanted = _wanted(mode, value, kept_mass, others[:size], max(bound - (n - size), 0))
    floor = np.float32(np.inf)
    ties = 0
    if wanted > 0:
        floor = np.partition(others[:size], size - wanted)[size - wanted]
        ties = wanted
        for i in range(size):
            ties -= others[i] > floor
    count = 0
    for i in range(first):
        chosen[count] = i
        count += 1
    for i in range(size):
        if others[i] > floor or (ties > 0 and others[i] == floor):
            ties -= others[i] == floor
            chosen[count] = first + i
            count += 1
    for i in range(last, n):
        chosen[count] = i
        count += 1
    return count


@functools.cache
def compiled_layer(group: int, head_dim: int) -> Callable[..., None]:
    """Compiles the decode layer for one group size and head size (seconds; cached on disk).

    Args:
        group: query heads of a KV head.
        head_dim: size of a head.

    Returns:
        The function `layer` below.
    """
    G, D = group, head_dim

    @njit(fastmath=FAST, **OPTIONS)
    def score(
        q: np.ndarray, k: np.ndarray, slots: np.ndarray, head: int, scale: float, scores: np.ndarray
    ) -> None:  # fmt: skip
        """Scaled scores [G, m] of one group against the given slots."""
        row = np.empty(D, np.float32)
        for i in range(slots.size):
            key = k[slots[i], head]
            for d in range(D):
                row[d] = _widen(key[d])
            for g in range(G):
                dot = np.float32(0.0)
                for d in range(D):
                    dot += q[g, d] * row[d]
                scores[g, i] = dot * scale

    @njit(fastmath=FAST, **OPTIONS)
    def attend(
        q: np.ndarray, k: np.ndarray, v: np.ndarray, slots: np.ndarray, head: int, scale: float,
        scores: np.ndarray, out: np.ndarray, lse: np.ndarray,
    ) -> None:  # fmt: skip
        """One group over the given slots: output [G, D], log-sum-exp [G]; leaves the probabilities in scores [G, m]."""
        m = slots.size
        score(q, k, slots, head, scale, scores)
        for g in range(G):
            top = np.float32(-np.inf)
            for i in range(m):
                top = max(top, scores[g, i])
            total = np.float32(0.0)
            for i in range(m):
                e = math.exp(scores[g, i] - top)
                scores[g, i] = e
                total += e
            lse[g] = top + math.log(total)
            for i in range(m):
                scores[g, i] /= total
        row = np.empty(D, np.float32)
        acc = np.zeros((G, D), np.float32)
        for i in range(m):
            value = v[slots[i], head]
            for d in range(D):
                row[d] = _widen(value[d])
            for g in range(G):
                p = scores[g, i]
                for d in range(D):
                    acc[g, d] += p * row[d]
        out[:] = acc

    @njit(fastmath=FAST, **OPTIONS)
    def full_lse(q: np.ndarray, k: np.ndarray, slots: np.ndarray, head: int, scale: float, scores: np.ndarray,
                 lse: np.ndarray) -> None:  # fmt: skip
        """Log-sum-exp [G] of a group over all slots, in float64."""
        score(q, k, slots, head, scale, scores)
        for g in range(G):
            top = np.float64(scores[g, : slots.size].max())
            total = 0.0
            for i in range(slots.size):
                total += math.exp(scores[g, i] - top)
            lse[g] = top + math.log(total)

    @njit(fastmath=FAST, **OPTIONS)
    def layer(
        q: np.ndarray, k: np.ndarray, v: np.ndarray, indptr: np.ndarray, indices: np.ndarray,
        writes: np.ndarray, reads: np.ndarray, positions: np.ndarray, counts: np.ndarray,
        mode: np.ndarray, budget: np.ndarray, value: np.ndarray, sinks: np.ndarray, recent: np.ndarray,
        dense: np.ndarray, audit: np.ndarray, scale: float,
        out: np.ndarray, lse: np.ndarray, attended: np.ndarray, recall_sum: np.ndarray, recall_heads: np.ndarray,
    ) -> None:  # fmt: skip
        longest = 1
        for b in range(q.shape[0]):
            longest = max(longest, indptr[b + 1] - indptr[b])
        scores = np.empty((G, longest), np.float32)
        weights = np.empty(longest, np.float32)
        others = np.empty(longest, np.float32)
        picked = np.empty(longest, np.int64)
        whole = np.empty(G, np.float64)
        for b in range(q.shape[0]):
            slots = indices[indptr[b] : indptr[b + 1]]
            n = slots.size
            for h in range(reads.size):
                root = reads[h]
                if root >= 0 and not dense[b]:
                    m = counts[b, root]
                    attended[b] += m
                    if m == 0:
                        out[b, h] = 0.0
                        lse[b, h] = -np.inf
                    else:
                        for i in range(m):
                            picked[i] = slots[positions[b, root, i]]
                        attend(q[b, h], k, v, picked[:m], h, scale, scores, out[b, h], lse[b, h])
                    if audit[b]:
                        full_lse(q[b, h], k, slots, h, scale, scores, whole)
                        held = 0.0
                        for g in range(G):
                            held += math.exp(lse[b, h, g] - whole[g])
                        recall_sum[b] += held / G
                        recall_heads[b] += 1
                    continue
                attend(q[b, h], k, v, slots, h, scale, scores, out[b, h], lse[b, h])
                attended[b] += n
                if writes[h] >= 0 and not dense[b]:
                    for i in range(n):
                        total = np.float32(0.0)
                        for g in range(G):
                            total += scores[g, i]
                        weights[i] = total / G
                    size = select_row(weights[:n], mode[b], budget[b], value[b], sinks[b], recent[b], others,
                                      positions[b, writes[h]])  # fmt: skip
                    counts[b, writes[h]] = size

    compiled: Callable[..., None] = layer
    return compiled
