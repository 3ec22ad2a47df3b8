"""The data that the ops share: budgets of the rows, roles of a layer's heads, and the sets handed down.

Shape legend: B rows (requests of a decode batch), H KV heads, G query heads of a KV head (the group), D head size,
R roots (retrieval heads whose set some sparse head reads), C capacity of a set, n_max longest context of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch


class Mode(IntEnum):
    """How a set is bounded (DESIGN.md 2.1); the numbers are what the row tables hold."""

    TOPK = 0
    RATIO = 1
    THRESHOLD = 2
    TOP_P = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRows:
    """What each row of a decode batch asked for, all tensors of length B.

    Attributes:
        mode: int32, a `Mode`.
        budget: int32, tokens a set may hold; 0 where a mode other than `topk` has no bound.
        value: float64, the fraction of `ratio`, `threshold` and `top_p`.
        sinks: int32, first positions always kept.
        recent: int32, last positions always kept (the current token is kept even with 0).
        dense: bool, every head of this row attends to everything.
        audit: bool, recall is measured at this step.
    """

    mode: torch.Tensor
    budget: torch.Tensor
    value: torch.Tensor
    sinks: torch.Tensor
    recent: torch.Tensor
    dense: torch.Tensor
    audit: torch.Tensor

    def __len__(self) -> int:
        return int(self.mode.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHeads:
    """The roles of one layer's H KV heads.

    Attributes:
        writes: the root (0..R-1) whose set a retrieval head writes; -1 where nobody reads it, and for sparse heads.
        reads: the root whose set a sparse head reads; -1 marks a retrieval head.
    """

    writes: tuple[int, ...]
    reads: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.writes) != len(self.reads):
            raise ValueError(f"writes has {len(self.writes)} heads and reads has {len(self.reads)}")
        for head, (write, read) in enumerate(zip(self.writes, self.reads, strict=True)):
            if write >= 0 and read >= 0:
                raise ValueError(f"head {head} both writes set {write} and reads set {read}")

    @property
    def sparse(self) -> int:
        """How many of the heads are sparse."""
        return sum(read >= 0 for read in self.reads)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSets:
    """The sets of one decode step: positions int32 [B, R, C] rising and padded with -1, counts int32 [B, R]."""

    positions: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def empty(cls, rows: int, roots: int, capacity: int, device: torch.device | str = "cpu") -> TokenSets:
        """Makes sets that hold nothing yet."""
        return cls(
            positions=torch.full((rows, roots, capacity), -1, dtype=torch.int32, device=device),
            counts=torch.zeros((rows, roots), dtype=torch.int32, device=device),
        )

    def write(self, row: int, root: int, chosen: torch.Tensor) -> None:
        """Replaces one set.

        Args:
            row: of the step.
            root: which of the step's roots.
            chosen: its positions, integers [n], rising.

        Raises:
            ValueError: there are more of them than the capacity.
        """
        capacity = self.positions.shape[2]
        if len(chosen) > capacity:
            raise ValueError(f"a set of {len(chosen)} positions does not fit the capacity {capacity}")
        self.positions[row, root] = -1
        self.positions[row, root, : len(chosen)] = chosen.to(torch.int32)
        self.counts[row, root] = len(chosen)


def set_bound(mode: Mode, budget: int, value: float, length: int) -> int:
    """The most positions that a set may hold over a context of `length` tokens (DESIGN.md 2.1).

    Args:
        mode: how the set is bounded.
        budget: tokens, or 0 for no bound (not with `topk`).
        value: the fraction of `ratio`.
        length: tokens in the context, the current one included.

    Returns:
        A number between 1 and `length`.
    """
    bound = budget if budget > 0 else length
    if mode == Mode.RATIO:
        # 0.3 is a little more than three tenths in binary: without the margin it would be 4 tokens of 10.
        bound = min(bound, math.ceil(value * length - 1e-9))
    return max(1, min(bound, length))


def kept_window(bound: int, sinks: int, recent: int) -> tuple[int, int]:
    """Shrinks the always-kept sinks and recent tokens so that attention chooses a quarter of the set (DESIGN.md 2.1).

    Args:
        bound: the bound in force at this step, in tokens.
        sinks: first positions to keep.
        recent: last positions to keep.

    Returns:
        (sinks, recent) as they apply under this bound.
    """
    kept = 3 * bound // 4
    if sinks + recent <= kept:
        return sinks, recent
    kept_sinks = kept * sinks // (sinks + recent)
    return kept_sinks, kept - kept_sinks


def set_bounds(mode: torch.Tensor, budget: torch.Tensor, value: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """`set_bound` of many rows, in the dtype of their lengths; all tensors of one shape, `value` float64."""
    bound = torch.where(budget > 0, torch.minimum(budget, lengths), lengths)
    return torch.where(mode == int(Mode.RATIO), torch.minimum(bound, ratio_bounds(value, lengths)), bound)


def ratio_bounds(value: torch.Tensor | float, lengths: torch.Tensor) -> torch.Tensor:
    """`set_bound` of many rows with mode `ratio` and no budget, in the dtype of their lengths."""
    return (lengths.double() * value - 1e-9).ceil().to(lengths.dtype).clamp(min=1)


def kept_windows(bound: torch.Tensor, sinks: torch.Tensor, recent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`kept_window` of many rows."""
    room, asked = 3 * bound // 4, sinks + recent
    fewer = room * sinks // asked.clamp(min=1)
    return torch.where(asked > room, fewer, sinks), torch.where(asked > room, room - fewer, recent)
