"""The row tables: what every request slot asked for, on the device, and the decisions of one decode step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import torch

from lychee_kernels.layout import DecodeRows, Mode
from lychee_sgl.backend.request import DENSE

if TYPE_CHECKING:
    from lychee_sgl.backend.request import RowSpec


class Fallback(IntEnum):
    """Why a row with a sparse budget ran a step dense."""

    NONE = 0
    DENSE_BELOW = 1
    BUDGET_COVERS_CONTEXT = 2


FALLBACK_NAMES = {Fallback.DENSE_BELOW: "dense_below", Fallback.BUDGET_COVERS_CONTEXT: "budget_covers_context"}

MODE, BUDGET, SINKS, RECENT, PROMPT = COLUMNS = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """The rows of one decode step.

    Attributes:
        rows: what the ops need.
        fallback: int32 [B], a `Fallback`.
        bound: int32 [B], tokens a set may hold at this length; `DENSE` for a request that asked for dense.
    """

    rows: DecodeRows
    fallback: torch.Tensor
    bound: torch.Tensor


class RowTable:
    """`params` int32 [max_reqs + 1, 5] and `values` float64 [max_reqs + 1], indexed by `req_pool_indices`.

    A slot that was never written is dense: so is SGLang's padding row 0, and so is a warm-up.
    """

    def __init__(self, max_reqs: int, device: torch.device | str) -> None:
        self.params = torch.zeros((max_reqs + 1, len(COLUMNS)), dtype=torch.int32, device=device)
        self.params[:, BUDGET] = DENSE
        self.values = torch.zeros(max_reqs + 1, dtype=torch.float64, device=device)

    def write(self, slots: list[int], specs: list[RowSpec], prompt_tokens: list[int]) -> None:
        """Writes the rows of an extend batch, in one copy each."""
        if not slots:
            return
        device = self.params.device
        index = torch.tensor(slots, dtype=torch.int64, device=device)
        self.params[index] = torch.tensor(
            [
                [int(s.mode), s.budget, s.sinks, s.recent, prompt]
                for s, prompt in zip(specs, prompt_tokens, strict=True)
            ],
            dtype=torch.int32,
            device=device,
        )
        self.values[index] = torch.tensor([s.value for s in specs], dtype=torch.float64, device=device)

    def step(
        self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor, *, dense_below: int, recall_every: int
    ) -> StepRows:
        """Decides how each row of a decode batch runs (DESIGN.md 2.2); tensor ops only, no host round trip.

        Args:
            req_pool_indices: [B] slots.
            seq_lens: [B] context lengths, the current token included.
            dense_below: contexts up to this length run dense.
            recall_every: one step in so many is audited; 0 for none.
        """
        params = self.params[req_pool_indices.long()]
        value = self.values[req_pool_indices.long()]
        mode, budget, lengths = params[:, MODE], params[:, BUDGET], seq_lens.to(torch.int32)
        wants_dense = budget == DENSE
        bound = torch.where(budget > 0, torch.minimum(budget, lengths), lengths)
        share = torch.ceil(value * lengths - 1e-9).to(torch.int32).clamp(min=1)
        bound = torch.where(mode == int(Mode.RATIO), torch.minimum(bound, share), bound)
        short = ~wants_dense & (lengths <= dense_below)
        by_number = (mode == int(Mode.TOPK)) | (mode == int(Mode.RATIO))
        covers = ~wants_dense & ~short & by_number & (bound >= lengths)
        fallback = short * int(Fallback.DENSE_BELOW) + covers * int(Fallback.BUDGET_COVERS_CONTEXT)
        dense = wants_dense | short | covers
        step = lengths - params[:, PROMPT] - 1
        audit = ~dense & (step % recall_every == 0) if recall_every else torch.zeros_like(dense)
        rows = DecodeRows(
            mode=mode,
            budget=budget.clamp(min=0),
            value=value,
            sinks=params[:, SINKS],
            recent=params[:, RECENT],
            dense=dense,
            audit=audit,
        )
        return StepRows(rows=rows, fallback=fallback.to(torch.int32), bound=torch.where(wants_dense, budget, bound))
