"""The definition of the policies (DESIGN.md 11.1): a score for every position, row by row, in float32 or better."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from lychee_kernels.layout import DecodeRows, LayerHeads, Mode, TokenSets, kept_window, set_bound
from lychee_kernels.policies.api import BLOCK, PAGE, Policy, PolicyRows
from lychee_kernels.select_tokens.reference import select_row

if TYPE_CHECKING:
    from lychee_kernels.hybrid_decode import HybridDecode
    from lychee_kernels.policies.api import Attend

_WORD = 0xFFFFFFFF


def pooled_weights(q: torch.Tensor, keys: torch.Tensor, sm_scale: float) -> torch.Tensor:
    """The weight of every position for every head: q [H, G, D] over keys [n, H, D] gives [H, n]."""
    scores = torch.einsum("hgd,nhd->hgn", q, keys) * sm_scale
    return scores.softmax(-1).mean(1)


def page_scores(q: torch.Tensor, keys: torch.Tensor, sm_scale: float) -> torch.Tensor:
    """Bounds of the pages as weights of their positions: q [H, G, D] over keys [n, H, D] gives [H, n]."""
    length = keys.shape[0]
    pages = torch.arange(length, device=keys.device) // PAGE
    index = pages[:, None, None].expand(keys.shape)
    empty = keys.new_zeros(-(-length // PAGE), *keys.shape[1:])
    low = empty.scatter_reduce(0, index, keys, "amin", include_self=False)  # [pages, H, D]
    high = empty.scatter_reduce(0, index, keys, "amax", include_self=False)
    # the larger of q_d * min and q_d * max is q_d's positive part times max plus its negative part times min
    bounds = torch.einsum("hgd,phd->hgp", q.clamp(min=0), high) + torch.einsum("hgd,phd->hgp", q.clamp(max=0), low)
    return (bounds * sm_scale).softmax(-1).mean(1)[:, pages]


def mixed(x: torch.Tensor) -> torch.Tensor:
    """Scrambles 32-bit numbers, held in int64."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def random_scores(seed: int, length: int, layer: int, head: int, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """24 random bits for every position, the same for the same numbers on every device: [n], exact in float32."""
    key = torch.zeros(1, dtype=torch.int64, device=device)
    for part in (seed, length, layer, head):
        key = mixed((key + part + 1) & _WORD)
    position = torch.arange(length, dtype=torch.int64, device=device)
    return (mixed((mixed(position) + key) & _WORD) >> 8).float()


def block_scores(weights: torch.Tensor, sinks: int, recent: int) -> torch.Tensor:
    """Weights [n] as the sums over their blocks, without the kept positions (which are in the set anyway)."""
    length = weights.shape[0]
    position = torch.arange(length, device=weights.device)
    kept = (position < sinks) | (position >= length - max(recent, 1))
    block = position // BLOCK
    sums = weights.new_zeros(-(-length // BLOCK)).scatter_add(0, block, weights.masked_fill(kept, 0.0))
    return sums[block]


def choose_row(policy: Policy, weights: torch.Tensor, mode: Mode, row: tuple[int, float, int, int]) -> torch.Tensor:
    """One head's set.

    Args:
        policy: what the scores are of; `block` adds them up first.
        weights: [n] scores.
        mode: `topk` or `ratio`.
        row: budget, value, sinks and recent, as for `select_row`.

    Returns:
        Rising positions, int64.
    """
    budget, value, sinks, recent = row
    if policy is Policy.BLOCK:
        bound = set_bound(mode, budget, value, weights.shape[0])
        weights = block_scores(weights, *kept_window(bound, sinks, recent))
    return select_row(weights, mode, budget, value, sinks, recent)


def _scores(
    policy: PolicyRows, row: int, q: torch.Tensor, keys: torch.Tensor, sm_scale: float, length: int
) -> torch.Tensor:
    """Every head's scores of one row, [H, n]; q [H, G, D], keys [n, H, D]."""
    match policy.policy:
        case Policy.WINDOW:
            return torch.arange(length, device=q.device, dtype=q.dtype).expand(q.shape[0], -1)
        case Policy.RANDOM:
            heads = range(policy.first_head, policy.first_head + q.shape[0])
            drawn = [random_scores(policy.seeds[row], length, policy.layer, h, device=q.device) for h in heads]
            return torch.stack(drawn)
        case Policy.QUEST:
            return page_scores(q, keys, sm_scale)
        case _:
            return pooled_weights(q, keys, sm_scale)


def _chosen(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    rows: DecodeRows,
    policy: PolicyRows,
    sm_scale: float,
    heads: list[int],
) -> list[list[torch.Tensor]]:
    """The sets of these heads, row by row; a dense row has none. q is [B, H, G, D]."""
    starts: list[int] = kv_indptr.tolist()
    columns = (rows.mode, rows.budget, rows.value, rows.sinks, rows.recent, rows.dense)
    found: list[list[torch.Tensor]] = []
    for b, (mode, *asked, dense) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        if dense:
            found.append([])
            continue
        slots = kv_indices[starts[b] : starts[b + 1]].long()
        scores = _scores(policy, b, q[b, heads], k_buffer[slots][:, heads].to(q.dtype), sm_scale, len(slots))
        found.append([choose_row(policy.policy, score, Mode(mode), tuple(asked)) for score in scores])
    return found


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
    attend: Attend,
) -> HybridDecode:
    """See `lychee_kernels.policies.policy_decode`."""
    batch, kv_heads = q.shape[0], k_buffer.shape[1]
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    grouped = q.reshape(batch, kv_heads, -1, q.shape[-1]).to(dtype)
    pool = (q, k_buffer, v_buffer, kv_indptr, kv_indices)
    nobody = (-1,) * kv_heads

    if policy.policy.by_plan:
        result = attend(*pool, LayerHeads(writes=nobody, reads=heads.reads), sets, rows, sm_scale)
        writers = [head for head in range(kv_heads) if heads.writes[head] >= 0]
        if writers:
            found = _chosen(grouped, k_buffer, kv_indptr, kv_indices, rows, policy, sm_scale, writers)
            for b, chosen in enumerate(found):
                for head, positions in zip(writers, chosen, strict=False):  # a dense row has none
                    sets.write(b, heads.writes[head], positions)
        return result
    if policy.layer < policy.policy.dense_layers:
        return attend(*pool, LayerHeads(writes=nobody, reads=nobody), sets, rows, sm_scale)

    found = _chosen(grouped, k_buffer, kv_indptr, kv_indices, rows, policy, sm_scale, list(range(kv_heads)))
    most = max((len(positions) for chosen in found for positions in chosen), default=0)
    own = TokenSets.empty(batch, kv_heads, most, q.device)
    for b, chosen in enumerate(found):
        for head, positions in enumerate(chosen):
            own.write(b, head, positions)
    result = attend(*pool, LayerHeads(writes=nobody, reads=tuple(range(kv_heads))), own, rows, sm_scale)
    lengths = kv_indptr.diff().tolist()
    beside = [0 if not chosen else kv_heads * policy.policy.beside(n) for n, chosen in zip(lengths, found, strict=True)]
    return dataclasses.replace(result, attended=result.attended + torch.tensor(beside, device=q.device))
