"""The ranks of a tensor-parallel engine: which heads are this one's, and what is added up over all (DESIGN.md 12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

from lychee_sgl.heads.ranks import rank_heads

if TYPE_CHECKING:
    from lychee_sgl.heads.plan import ModelShape


class RanksDiffer(RuntimeError):
    """The ranks of one engine were given different plans or settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among the ranks of its engine.

    Attributes:
        size: ranks.
        rank: this one, from 0.
        group: SGLang's coordinator of the ranks; None for a single one.
    """

    size: int = 1
    rank: int = 0
    group: Any = None

    @classmethod
    def of_this_process(cls) -> Ranks:
        """Asks SGLang."""
        from sglang.srt.runtime_context import get_parallel

        parallel = get_parallel()
        if parallel.tp_size == 1:
            return cls()
        return cls(size=parallel.tp_size, rank=parallel.tp_rank, group=parallel.tp_group)

    def heads(self, shape: ModelShape, rank: int | None = None) -> range:
        """Gives the KV heads of a layer that a rank has; this one's by default."""
        return rank_heads(shape.num_key_value_heads, self.size, self.rank if rank is None else rank)

    def group_size(self, shape: ModelShape) -> int:
        """Query heads of one rank that read one of its KV heads."""
        return shape.num_attention_heads // self.size // len(self.heads(shape))

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replaces a tensor by its sum over all ranks, in order with the other work of the current stream.

        All ranks have to call it at the same step. Not SGLang's own `all_reduce`: its kernels take no float64, and
        float32 cannot count the entries of a long context.
        """
        if self.group is not None:
            torch.distributed.all_reduce(tensor, group=self.group.device_group)

    def agree(self, what: dict[str, Any]) -> None:
        """Makes sure that all ranks hold the same values.

        Raises:
            RanksDiffer: they do not; names the entry and both values.
        """
        if self.group is None:
            return
        found: list[dict[str, Any]] = [{} for _ in range(self.size)]
        torch.distributed.all_gather_object(found, what, group=self.group.cpu_group)
        for rank, other in enumerate(found):
            for name, value in what.items():
                if other.get(name) != value:
                    raise RanksDiffer(
                        f"{name} is {value!r} on rank {self.rank} and {other.get(name)!r} on rank {rank}: "
                        "give all processes of one engine the same plan and settings"
                    )
