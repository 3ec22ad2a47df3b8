"""The policies for all rows at once, in torch: the definition's scores and sets, without a loop over rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lychee_kernels.hybrid_decode.batched import decoded, grouped_queries, hand_down, handed_down
from lychee_kernels.padded import Sums, entries_of, on_device, parts_of
from lychee_kernels.policies.api import BLOCK, PAGE, Policy, PolicyRows
from lychee_kernels.policies.reference import mixed
from lychee_kernels.select_tokens.batched import choose, row_bounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_kernels.hybrid_decode import HybridDecode
    from lychee_kernels.layout import DecodeRows, LayerHeads, TokenSets
    from lychee_kernels.padded import Entries, Part

_WORD = 0xFFFFFFFF


def page_scores(entries: Entries, q: torch.Tensor, positions: int, sm_scale: float) -> torch.Tensor:
    """Bounds of the pages as weights of their positions, q [b, H, G, D]: [b, H, positions]."""
    found = entries.page_bounds(q, PAGE, sm_scale)
    return found.softmax(-1).mean(2).repeat_interleave(PAGE, -1)[..., :positions]


def random_scores(seeds: torch.Tensor, part: Part, layer: int, heads: range) -> torch.Tensor:
    """The definition's draws for every row and head, float32 [b, H, n]; seeds int64 [b]."""
    head = torch.arange(heads.start, heads.stop, device=seeds.device)
    key = torch.zeros((len(seeds), len(heads)), dtype=torch.int64, device=seeds.device)
    for number in (seeds[:, None], part.lengths[:, None], layer, head):
        key = mixed((key + number + 1) & _WORD)
    position = mixed(torch.arange(part.real.shape[1], dtype=torch.int64, device=seeds.device))
    return (mixed((position + key[..., None]) & _WORD) >> 8).float()


def block_scores(weights: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Weights [b, H, n] as the sums over their blocks, without the kept positions, bool [b, 1, n]."""
    length = weights.shape[2]
    counted = torch.nn.functional.pad(weights.masked_fill(kept, 0.0), (0, -length % BLOCK))
    return counted.unflatten(2, (-1, BLOCK)).sum(-1).repeat_interleave(BLOCK, -1)[..., :length]


def _scores(
    policy: PolicyRows, part: Part, q: torch.Tensor, entries: Entries, scores: torch.Tensor, sm_scale: float
) -> torch.Tensor:
    """What a policy in which every head chooses weighs positions by, [b, H, n]; scores [b, H, G, n]."""
    match policy.policy:
        case Policy.WINDOW:
            return torch.arange(scores.shape[3], device=q.device, dtype=q.dtype).expand(*q.shape[:2], -1)
        case Policy.RANDOM:
            seeds = on_device(policy.seeds[part.rows], q.device)
            heads = range(policy.first_head, policy.first_head + q.shape[1])
            return random_scores(seeds, part, policy.layer, heads)
        case Policy.QUEST:
            return page_scores(entries, q, scores.shape[3], sm_scale)
        case _:
            return scores.softmax(-1).mean(2)


def policy_decode(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    heads: LayerHeads,
    sets: TokenSets,
    rows: DecodeRows,
    policy: PolicyRows,
    sm_scale: float,
    *,
    parts: Sequence[Part] | None = None,
    most: int | None = None,
) -> HybridDecode:
    """See `lychee_kernels.policies.policy_decode`; `parts` as in the batched `hybrid_decode`.

    `most` is the size of the largest set of a row that is not dense, where that is known: choosing is faster with it.
    """
    kv_heads = k_buffer.shape[1]
    grouped = grouped_queries(q, kv_heads)
    sums = Sums.empty(grouped)
    everything = policy.layer < policy.policy.dense_layers
    beside = torch.zeros_like(sums.attended)
    for part in parts or parts_of(kv_indptr, kv_indices, kv_heads * k_buffer.shape[2]):
        here, mine = part.rows, grouped[part.rows]
        entries = entries_of(part, k_buffer, v_buffer, grouped.dtype)
        scores = entries.scores(mine, sm_scale)
        if policy.policy.by_plan:
            sums.add(part, scores, entries, *handed_down(part, heads, sets, rows), rows)
            if max(heads.writes) >= 0:
                sized = row_bounds(rows, here, part.lengths, scores.shape[3], most=0)
                hand_down(part, block_scores(scores.softmax(-1).mean(2), sized.kept), heads, sets, rows)
            continue
        sparse = torch.full((kv_heads,), not everything, device=q.device)
        allowed = part.real[:, None].expand(-1, kv_heads, -1)
        if not everything:
            sized = row_bounds(rows, here, part.lengths, scores.shape[3], most=most)
            chosen = choose(_scores(policy, part, mine, entries, scores, sm_scale), sized)
            allowed = allowed & (chosen | rows.dense[here, None, None])
            if policy.policy is Policy.QUEST:
                pages = -(-part.lengths // PAGE) * kv_heads
                beside[here] = pages.masked_fill(rows.dense[here], 0)
        sums.add(part, scores, entries, allowed, sparse, rows)
    sums.attended += beside
    return decoded(sums, q)
