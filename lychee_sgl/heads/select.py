"""Selection by budget for many rows at once: what `lychee_kernels.select_tokens` defines, as masks and without loops.

The definition goes row by row through a stable sort; this needs one `topk` and two passes, and is what training and
evaluation can afford. Both give the same sets (DESIGN.md 2.1, mode `topk`).
"""

from __future__ import annotations

import torch


def select_mask(
    weights: torch.Tensor, lengths: torch.Tensor, budget: torch.Tensor | int, *, sinks: int, recent: int
) -> torch.Tensor:
    """The sets of many rows.

    Args:
        weights: float [..., n], the group's mean attention probability of every position; 0 to 1, NaN orders last.
        lengths: integers that broadcast to [...]: the context of each row, its current token included, 1 to n.
        budget: tokens in a set, a number or integers that broadcast to [...]; at least 1.
        sinks: first positions always kept.
        recent: last positions always kept.

    Returns:
        bool [..., n], with `min(budget, length)` positions in every row.

    Raises:
        ValueError: a budget is below 1, or no position is there.
    """
    context = weights.shape[-1]
    if context == 0:
        raise ValueError("weights has no position; allowed: a context of one token or more")
    rows = weights.shape[:-1]
    length = lengths.to(weights.device).expand(rows)
    bound = torch.as_tensor(budget, device=weights.device).expand(rows)
    if bound.numel() and int(bound.min()) < 1:
        raise ValueError(f"budget is {int(bound.min())}; allowed: 1 or more")
    bound = torch.minimum(bound, length)
    if not bound.numel():
        return torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)

    room = 3 * bound // 4
    shrinks = (sinks + recent > room) & (bound < length)
    first = torch.where(shrinks, room * sinks // max(sinks + recent, 1), sinks)[..., None]
    last = torch.where(shrinks, room - room * sinks // max(sinks + recent, 1), recent)[..., None]
    position = torch.arange(context, device=weights.device)
    from_end = length[..., None] - position  # 1 for the current token
    kept = (position < first) | (from_end <= last.clamp(min=1))

    # One order for all: kept positions above every probability, NaN below, the future below that.
    rank = torch.nan_to_num(weights.detach(), nan=-1.0).masked_fill(kept, 2.0).masked_fill(from_end <= 0, -2.0)
    best = rank.topk(int(bound.max()), dim=-1).values
    least = best.gather(-1, bound[..., None].long() - 1)
    above = rank > least
    ties = rank == least  # the lower positions among them fill what is left
    missing = bound[..., None] - above.sum(-1, keepdim=True)
    return above | (ties & (ties.cumsum(-1, dtype=torch.int32) <= missing))
