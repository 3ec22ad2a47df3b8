"""How a decode step's work is cut up on a GPU, and the memory that its kernels share (DESIGN.md 9).

A layer's work is a list of *blocks* of `block` tokens, row after row. A row's blocks come in sections: the heads that
read the whole context (all of them in a dense row, the retrieval heads in another), the sparse heads, and, where the
row is audited, the sparse heads once more over the whole context. `programs` programs take equal *spans* of that
list, whatever rows and heads a span crosses. Within a section the order is by *items*, an item being a span's length
of one head's list, heads fastest: programs that run side by side then read the same tokens of neighbouring heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Self

import torch
import triton

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_kernels.layout import LayerHeads


class Row(IntEnum):
    """Columns of `DecodePlan.rows`."""

    LENGTH = 0
    DENSE = 1
    AUDIT = 2
    BOUND = 3
    SINKS = 4
    RECENT = 5
    MODE = 6
    SET_START = 7
    SCORE_START = 8
    FALLBACK = 9
    BUDGET = 10


ROW_FIELDS = 16
"""Columns of `DecodePlan.rows`, rounded up so that a row is 64 bytes."""


def lanes(max_rows: int) -> int:
    """Lanes over the rows of a batch: two sizes only, each is a kernel to compile."""
    return 64 if max_rows <= 64 else triton.next_power_of_2(max(512, max_rows))


BINS = 512
"""Bins of the selection's histogram: 16 octaves of 32 bins each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkShape:
    """What the kernels are compiled for.

    Attributes:
        kv_heads: H, KV heads of a layer.
        group: G, query heads of a KV head.
        head_dim: D, 64 or 128.
        block: tokens of a block.
        programs: programs that share a layer's blocks.
        chunk: tokens that one program of the selection handles at a time.
        patterns: the numbers of retrieval heads that occur in a layer, rising.
    """

    kv_heads: int
    group: int
    head_dim: int
    block: int
    programs: int
    chunk: int
    patterns: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.head_dim not in (64, 128):
            raise ValueError(f"head_dim is {self.head_dim}, the Triton kernels have: 64, 128")
        if not 1 <= self.group <= 16:
            raise ValueError(f"group is {self.group}, the Triton kernels have: 1 to 16 query heads of a KV head")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePlan:
    """A decode step's decisions and its partition, written by `plan_decode` into memory that stays where it is.

    Attributes:
        rows: int32 [max_rows, ROW_FIELDS], columns as in `Row`.
        values: float64 [max_rows], the fraction of the modes that need one.
        kv_indptr: int32 [max_rows + 1].
        chunk_ptr: int32 [max_rows + 1], selection chunks before each row; dense rows have none.
        block_ptr: int32 [patterns, max_rows + 1], blocks before each row in a layer with so many retrieval heads.
        item_ptr: int32 [patterns, max_rows + 1], items before each row.
        span: int32 [patterns], blocks that a program takes.
    """

    rows: torch.Tensor
    values: torch.Tensor
    kv_indptr: torch.Tensor
    chunk_ptr: torch.Tensor
    block_ptr: torch.Tensor
    item_ptr: torch.Tensor
    span: torch.Tensor

    @classmethod
    def empty(cls, max_rows: int, patterns: int, device: torch.device | str) -> Self:
        """Allocates a plan for up to `max_rows` rows."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            rows=zeros(max_rows, ROW_FIELDS),
            values=zeros(max_rows, dtype=torch.float64),
            kv_indptr=zeros(max_rows + 1),
            chunk_ptr=zeros(max_rows + 1),
            block_ptr=zeros(patterns, max_rows + 1),
            item_ptr=zeros(patterns, max_rows + 1),
            span=zeros(patterns),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """One layer's roles on the device.

    Attributes:
        heads: int32 [H, 4]: KV head, root written (-1), root read (-1), spare; writers first, then the other
            retrieval heads, then the sparse heads.
        retrieval: how many heads read the whole context.
        writers: how many of them write a set that somebody reads.
        pattern: the layer's row of `DecodePlan.block_ptr`.
    """

    heads: torch.Tensor
    retrieval: int
    writers: int
    pattern: int

    @classmethod
    def build(cls, heads: LayerHeads, patterns: Sequence[int], device: torch.device | str) -> Self:
        """Orders a layer's heads and puts them on the device."""
        order = sorted(range(len(heads.reads)), key=lambda h: (heads.reads[h] >= 0, heads.writes[h] < 0, h))
        table = [[h, heads.writes[h], heads.reads[h], 0] for h in order]
        retrieval = len(heads.reads) - heads.sparse
        return cls(
            heads=torch.tensor(table, dtype=torch.int32, device=device),
            retrieval=retrieval,
            writers=sum(write >= 0 for write in heads.writes),
            pattern=list(patterns).index(retrieval),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Memory that the layers of a step use one after the other, and the sets that they hand down.

    Attributes:
        partial: float32 [slots, G, D], what a program has summed over its part of an item; two slots an item.
        partial_lse: float32 [slots, G], base-2 log-sum-exp of it.
        scores: [writers * G, score_capacity], base-2 scaled scores of the writers of the layer at hand.
        keys: int16 [writers, score_capacity], histogram bin of every position's weight.
        histogram: int32 [writers, max_rows, BINS].
        mass: int64 [writers, max_rows, BINS], weight in each bin in units of 2**-40; rows bounded by `top_p` only.
        chunk_counts: int16 [writers, chunks, BINS], positions of a chunk in this bin or a higher one.
        finished: int32 [writers, max_rows], chunks of a row that have been counted.
        borders: int32 [writers, max_rows], the bin at which a row's set ends.
        chunk_starts: int32 [writers, chunks, 2], positions chosen before a chunk, and how many of the border bin it may
            still choose.
        chunk_mass: int64 [writers, chunks], weight of the kept positions of a chunk, in the same units.
        set_positions: int32 [R, set_capacity], rising positions of each root's sets, row after row.
        set_slots: int32 [R, set_capacity], where those lie in the pool.
        set_counts: int32 [max_rows, R].
        recall: float32 [max_rows, L, H * G], of the last audited step.
    """

    partial: torch.Tensor
    partial_lse: torch.Tensor
    scores: torch.Tensor
    keys: torch.Tensor
    histogram: torch.Tensor
    mass: torch.Tensor
    chunk_counts: torch.Tensor
    chunk_mass: torch.Tensor
    finished: torch.Tensor
    borders: torch.Tensor
    chunk_starts: torch.Tensor
    set_positions: torch.Tensor
    set_slots: torch.Tensor
    set_counts: torch.Tensor
    recall: torch.Tensor

    @classmethod
    def empty(
        cls,
        shape: WorkShape,
        *,
        max_rows: int,
        layers: int,
        roots: int,
        writers: int,
        set_capacity: int,
        score_capacity: int,
        device: torch.device | str,
        score_dtype: torch.dtype = torch.float16,
    ) -> Self:
        """Allocates for up to `max_rows` rows.

        Args:
            shape: what the kernels are compiled for.
            max_rows: rows of a batch.
            layers: L, of the model.
            roots: R, sets of a row.
            writers: most sets that one layer writes.
            set_capacity: tokens that the sets of one root may hold over all rows.
            score_capacity: tokens of context that the sparse rows may have together.
            device: where.
            score_dtype: of the scores between attention and selection. Half precision has an error of under a hundredth
                of a weight, a third of a bin's width, up to scores of 32 on either side of 0.
        """

        def new(*sizes: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(tuple(max(1, size) for size in sizes), dtype=dtype, device=device)

        # a program's span ends inside an item at most once, and every list of a row may add a short item
        slots = 2 * (shape.programs + 3 * max_rows * shape.kv_heads)
        chunks = score_capacity // shape.chunk + max_rows
        return cls(
            partial=new(slots, shape.group, shape.head_dim, dtype=torch.float32),
            partial_lse=new(slots, shape.group, dtype=torch.float32),
            scores=new(writers * shape.group, score_capacity, dtype=score_dtype),
            keys=new(writers, score_capacity, dtype=torch.int16),
            histogram=new(writers, max_rows, BINS, dtype=torch.int32),
            mass=new(writers, max_rows, BINS, dtype=torch.int64),
            chunk_counts=new(writers, chunks, BINS, dtype=torch.int16),
            chunk_mass=new(writers, chunks, dtype=torch.int64),
            finished=torch.zeros((max(1, writers), max_rows), dtype=torch.int32, device=device),
            borders=new(writers, max_rows, dtype=torch.int32),
            chunk_starts=new(writers, chunks, 2, dtype=torch.int32),
            set_positions=new(roots, set_capacity, dtype=torch.int32),
            set_slots=new(roots, set_capacity, dtype=torch.int32),
            set_counts=torch.zeros((max_rows, max(1, roots)), dtype=torch.int32, device=device),
            recall=torch.zeros((max_rows, layers, shape.kv_heads * shape.group), dtype=torch.float32, device=device),
        )

    def bytes(self) -> int:
        """What all of it takes."""
        tensors = (getattr(self, name) for name in self.__slots__)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
