"""Selection by budget for many rows at once: what `lychee_kernels.select_tokens` defines, as masks and without loops.

The definition goes row by row through a stable sort; this needs one `topk` and two passes, and is what training and
evaluation can afford. Both give the same sets (DESIGN.md 2.1, mode `topk`).
"""

from __future__ import annotations

import torch


def set_size(lengths: torch.Tensor, share: float) -> torch.Tensor:
    """Tokens in a set that holds a share of its context (DESIGN.md 2.1, mode `ratio`).

    Args:
        lengths: contexts, the current token included.
        share: in (0, 1].

    Returns:
        int64, at least 1 each, in the shape of `lengths`.
    """
    return (lengths.double() * share - 1e-9).ceil().long().clamp(min=1)


def select_mask(
    weights: torch.Tensor,
    lengths: torch.Tensor,
    budget: torch.Tensor | int,
    *,
    sinks: torch.Tensor | int,
    recent: torch.Tensor | int,
    most: int | None = None,
) -> torch.Tensor:
    """The sets of many rows.

    Args:
        weights: float [..., n], the group's mean attention probability of every position; 0 to 1, NaN orders last.
        lengths: integers that broadcast to [...]: the context of each row, its current token included, 1 to n.
        budget: tokens in a set, a number or integers that broadcast to [...]; at least 1.
        sinks: first positions always kept, as `budget`.
        recent: last positions always kept, as `budget`.
        most: the largest budget. With it, a tensor of budgets is not read: on a GPU that saves waiting for it.

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
    bound, head, tail = (
        torch.as_tensor(given, device=weights.device).expand(rows) for given in (budget, sinks, recent)
    )
    if not bound.numel():
        return torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
    if most is None:
        least, most = (budget, budget) if isinstance(budget, int) else (int(bound.min()), int(bound.max()))
        if least < 1:
            raise ValueError(f"budget is {least}; allowed: 1 or more")
    bound = torch.minimum(bound, length)

    room = 3 * bound // 4
    shrinks = (head + tail > room) & (bound < length)
    fewer = room * head // (head + tail).clamp(min=1)
    first = torch.where(shrinks, fewer, head)[..., None]
    last = torch.where(shrinks, room - fewer, tail)[..., None]
    position = torch.arange(context, device=weights.device)
    from_end = length[..., None] - position  # 1 for the current token
    kept = (position < first) | (from_end <= last.clamp(min=1))

    # One order for all: kept positions above every probability, NaN below, the future below that.
    rank = torch.nan_to_num(weights.detach(), nan=-1.0).masked_fill(kept, 2.0).masked_fill(from_end <= 0, -2.0)
    best = rank.topk(min(most, context), dim=-1).values
    last_in = best.gather(-1, bound[..., None].long() - 1)
    above = rank > last_in
    ties = rank == last_in  # the lower positions among them fill what is left
    missing = bound[..., None] - above.sum(-1, keepdim=True)
    return above | (ties & (ties.cumsum(-1, dtype=torch.int32) <= missing))
