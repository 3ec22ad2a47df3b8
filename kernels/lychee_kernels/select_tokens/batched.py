"""Selection for many rows at once, in torch: the definition's sets, for modes whose sets have a fixed size.

The definition goes row by row through a stable sort. This takes one `topk`, as short as the largest set, and two passes
over the weights; it is what training, evaluation and batches that no kernel takes choose by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lychee_kernels.layout import kept_window, kept_windows, set_bounds

if TYPE_CHECKING:
    from lychee_kernels.layout import DecodeRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What is in the sets of some rows whatever the weights, and how many more the weights choose.

    Attributes:
        kept: bool [..., n], sinks and recent ones; all where the set is the whole context.
        others: bool [..., n], the rest of a row's positions.
        room: int64 [...], how many of the others the set has.
        most: the largest room, or more than that. What is chosen for a row with more room means nothing.
    """

    kept: torch.Tensor
    others: torch.Tensor
    room: torch.Tensor
    most: int


def bounds(
    bound: torch.Tensor,
    sinks: torch.Tensor,
    recent: torch.Tensor,
    lengths: torch.Tensor,
    *,
    positions: int,
    most: int | None = None,
) -> Bounds:
    """What bounds sets of a fixed size; all tensors are integers whose shapes broadcast to [...], on one device.

    Args:
        bound: positions of a set, 1 to the row's length.
        sinks: first positions asked for.
        recent: last positions asked for.
        lengths: contexts.
        positions: n, at least the longest of them.
        most: of `Bounds`; None: read from the device, which waits for it.
    """
    sinks, recent = kept_windows(bound, sinks, recent)
    position = torch.arange(positions, device=lengths.device)
    real = position < lengths[..., None]
    kept = (position < sinks[..., None]) | (position >= (lengths - recent.clamp(min=1))[..., None])
    kept = (kept | (bound >= lengths)[..., None]) & real
    room = bound - kept.sum(-1)
    if most is None:
        most = int(room.max()) if room.numel() else 0
    return Bounds(kept=kept, others=real & ~kept, room=room, most=min(most, positions))


def row_bounds(
    rows: DecodeRows, here: slice, lengths: torch.Tensor, positions: int, *, most: int | None = None
) -> Bounds:
    """What bounds the sets of some rows of a batch, the same for all of a row's heads: shapes [b, 1] and [b, 1, n].

    Args:
        rows: of the whole batch, each with mode `topk` or `ratio`; no other row's set means anything.
        here: which of them.
        lengths: int64 [b], their contexts.
        positions: n, at least the longest of them.
        most: positions of the largest set that counts, where that is known. Nothing here waits for the device.
    """
    bound = set_bounds(rows.mode[here], rows.budget[here].long(), rows.value[here], lengths)
    asked = (bound, rows.sinks[here].long(), rows.recent[here].long(), lengths)
    return bounds(*(each[:, None] for each in asked), positions=positions, most=positions if most is None else most)


def choose(weights: torch.Tensor, found: Bounds) -> torch.Tensor:
    """Chooses the heaviest positions beside those that are kept; equal weights in the order of their positions.

    Args:
        weights: float [..., n]; NaN is lighter than every number, and minus infinity weighs as the lowest finite one.
        found: which positions are kept, and the room beside them; shapes broadcast to those of the weights.

    Returns:
        bool [..., n].
    """
    if not found.most:
        return found.kept.expand(weights.shape).clone()
    # nan_to_num makes a copy, and minus infinity of NaN alone: what is no choice ties with it and with nothing else
    rank = torch.nan_to_num(weights.detach(), nan=-torch.inf, posinf=torch.inf).masked_fill_(~found.others, -torch.inf)
    best = rank.topk(found.most, dim=-1).values
    place = (found.room - 1).clamp(min=0, max=found.most - 1)
    lightest = best.gather(-1, place.expand(weights.shape[:-1])[..., None])
    heavier = rank > lightest
    ties = (rank == lightest) & found.others
    missing = found.room[..., None] - heavier.sum(-1, keepdim=True)
    return found.kept | heavier | (ties & (ties.cumsum(-1, dtype=torch.int32) <= missing))


def select_mask(
    weights: torch.Tensor,
    lengths: torch.Tensor,
    budget: torch.Tensor | int,
    *,
    sinks: torch.Tensor | int,
    recent: torch.Tensor | int,
    most: int | None = None,
) -> torch.Tensor:
    """The sets of many rows by budget (DESIGN.md 2.1, mode `topk`), as masks.

    Args:
        weights: float [..., n], the group's mean attention probability of every position; NaN orders last.
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
    context, device = weights.shape[-1], weights.device
    if context == 0:
        raise ValueError("weights has no position; allowed: a context of one token or more")
    if not weights.numel():
        return torch.zeros(weights.shape, dtype=torch.bool, device=device)
    if most is None:
        least = budget if isinstance(budget, int) else int(budget.min())
        if least < 1:
            raise ValueError(f"budget is {least}; allowed: 1 or more")
        if isinstance(budget, int) and isinstance(sinks, int) and isinstance(recent, int):
            most = budget - sum(kept_window(budget, sinks, recent))
    size, first, last = (
        given.to(device) if isinstance(given, torch.Tensor) else torch.full((), given, device=device)
        for given in (budget, sinks, recent)
    )
    length = lengths.to(device)
    return choose(weights, bounds(size.minimum(length), first, last, length, positions=context, most=most))
