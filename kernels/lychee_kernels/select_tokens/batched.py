"""Selection for many rows at once, in torch: the definition's sets, for modes whose sets have a fixed size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lychee_kernels.layout import kept_windows, set_bounds

if TYPE_CHECKING:
    from lychee_kernels.layout import DecodeRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How large the sets of b rows of n positions are, and what is in them whatever the weights.

    Attributes:
        sizes: int64 [b], positions of a set.
        kept: bool [b, n], sinks and recent ones; all where the set is the whole context.
    """

    sizes: torch.Tensor
    kept: torch.Tensor


def bounds(rows: DecodeRows, here: slice, lengths: torch.Tensor, positions: int) -> Bounds:
    """`set_bound` and `kept_window` of some rows, on their device.

    Args:
        rows: of the whole batch, each with mode `topk` or `ratio`.
        here: which of them.
        lengths: int64 [b], their contexts.
        positions: n, at least the longest of them.
    """
    bound = set_bounds(rows.mode[here], rows.budget[here].long(), rows.value[here], lengths)
    sinks, recent = kept_windows(bound, rows.sinks[here].long(), rows.recent[here].long())
    position = torch.arange(positions, device=lengths.device)
    kept = (position < sinks[:, None]) | (position >= (lengths - recent.clamp(min=1))[:, None])
    whole = bound >= lengths
    kept = (kept | whole[:, None]) & (position < lengths[:, None])
    return Bounds(sizes=torch.maximum(bound, kept.sum(1)), kept=kept)


def choose(weights: torch.Tensor, real: torch.Tensor, found: Bounds) -> torch.Tensor:
    """Chooses the heaviest positions beside those that are kept; equal weights in the order of their positions.

    Args:
        weights: [b, H, n]; NaN is lighter than every number.
        real: bool [b, n], positions that a row has.
        found: sizes and kept positions.

    Returns:
        bool [b, H, n].
    """
    # stable: equal weights stay in order, and NaN, the last, before what is no position of the row
    key = (-weights).masked_fill(found.kept[:, None], -torch.inf).masked_fill(~real[:, None], torch.nan)
    # one long sort and one by rows: CUDA's sort of a few long rows takes them one after the other
    length = key.shape[2]
    by_weight = key.flatten().argsort(stable=True)
    order = (by_weight[(by_weight // length).argsort(stable=True)] % length).view_as(key)
    first = torch.arange(weights.shape[2], device=weights.device) < found.sizes[:, None]
    return torch.zeros_like(order, dtype=torch.bool).scatter_(2, order, first[:, None].expand_as(order))
