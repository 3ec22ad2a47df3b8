"""The row tables: what every request slot asked for, on the device and, for the host's own decisions, beside it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from lychee_kernels.decode_plan import PlanRules, decide_rows
from lychee_kernels.decode_plan.api import DENSE, Fallback, Param
from lychee_kernels.layout import Mode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lychee_kernels.decode_plan.api import RowDecisions
    from lychee_sgl.backend.request import RowSpec

FALLBACK_NAMES = {
    Fallback.DENSE_BELOW: "dense_below",
    Fallback.BUDGET_COVERS_CONTEXT: "budget_covers_context",
    Fallback.WORKSPACE: "workspace",
}
_FALLBACKS: Final[Mapping[int, Fallback | None]] = MappingProxyType({-1: None} | {int(each): each for each in Fallback})


class HostRows(NamedTuple):
    """What the host knows of a decode step's rows before it runs.

    Attributes:
        fallbacks: None for a row that runs sparse; else why it is dense, `Fallback.NONE` when that was asked for.
        budgets: tokens that a set may hold at this length, or `DENSE`, as `RowDecisions.bound`.
    """

    fallbacks: list[Fallback | None]
    budgets: list[int]


class RowTable:
    """`params` int32 [max_reqs + 1, 5] and `values` float64 [max_reqs + 1], indexed by `req_pool_indices`.

    A slot that was never written is dense: so is SGLang's padding row 0, and so is a warm-up. `host_params` and
    `host_values` are copies in the host's memory; policies and their seeds are there alone, for no kernel knows them.
    """

    def __init__(self, max_reqs: int, device: torch.device | str) -> None:
        self.params = torch.zeros((max_reqs + 1, len(Param)), dtype=torch.int32, device=device)
        self.params[:, Param.BUDGET] = DENSE
        self.values = torch.zeros(max_reqs + 1, dtype=torch.float64, device=device)
        self.host_params = self.params.cpu().numpy().copy()
        self.host_values = self.values.cpu().numpy().copy()
        self.host_policies = np.zeros(max_reqs + 1, dtype=np.int64)
        self.host_seeds = np.zeros(max_reqs + 1, dtype=np.int64)

    def write(self, slots: list[int], specs: list[RowSpec], prompt_tokens: list[int]) -> None:
        """Writes the rows of an extend batch, in one copy each."""
        if not slots:
            return
        self.host_params[slots] = [
            [int(s.mode), s.budget, s.sinks, s.recent, prompt] for s, prompt in zip(specs, prompt_tokens, strict=True)
        ]
        self.host_values[slots] = [s.value for s in specs]
        self.host_policies[slots] = [int(s.policy) for s in specs]
        self.host_seeds[slots] = [s.seed for s in specs]
        index = self._send(np.asarray(slots, dtype=np.int64))
        self.params[index] = self._send(self.host_params[slots])
        self.values[index] = self._send(self.host_values[slots])

    def _send(self, array: np.ndarray) -> torch.Tensor:
        """Copies to the device without waiting for what it still has to do."""
        tensor = torch.from_numpy(array)
        if self.params.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.params.device, non_blocking=True)

    def step(
        self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor, *, dense_below: int, recall_every: int
    ) -> RowDecisions:
        """Decides how each row of a decode batch runs (DESIGN.md 2.2); see `lychee_kernels.decode_plan.decide_rows`."""
        rules = PlanRules(dense_below=dense_below, recall_every=recall_every)
        return decide_rows(req_pool_indices, seq_lens, self.params, self.values, rules)

    def host_rows(self, slots: Sequence[int], lengths: Sequence[int], dense_below: int) -> HostRows:
        """Decides on the host which rows run dense, by the same rules as `step`.

        Said once more in numpy, and held to `step` by a test: for a batch of eight the definition's torch takes seven
        times as long, and a decode step waits for it.

        Args:
            slots: a decode batch's requests.
            lengths: their contexts, the current token included.
            dense_below: contexts up to this length run dense.
        """
        params, lens = self.host_params[list(slots)], np.asarray(lengths, dtype=np.int64)
        mode, budget = params[:, Param.MODE], params[:, Param.BUDGET]
        bound = np.where(budget > 0, np.minimum(budget, lens), lens)
        share = np.maximum(np.ceil(self.host_values[list(slots)] * lens - 1e-9), 1).astype(np.int64)
        bound = np.where(mode == int(Mode.RATIO), np.minimum(bound, share), bound)
        covers = (mode <= int(Mode.RATIO)) & (bound >= lens)
        reason = np.where(covers, int(Fallback.BUDGET_COVERS_CONTEXT), -1)
        reason = np.where(lens <= dense_below, int(Fallback.DENSE_BELOW), reason)
        reason = np.where(budget == DENSE, int(Fallback.NONE), reason)
        return HostRows(
            fallbacks=[_FALLBACKS[number] for number in reason.tolist()],
            budgets=np.where(budget == DENSE, DENSE, bound).tolist(),
        )
