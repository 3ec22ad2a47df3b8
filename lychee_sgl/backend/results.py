"""A step's statistics on their way from the backend to SGLang's output, from a device without making it wait."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from lychee_kernels.decode_plan.api import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.backend.summary import Step


class HostSteps:
    """Statistics that are known on the host."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self.sparse = [step.sparse for step in steps]

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        # a plain tuple: what leaves in `meta_info` is written as JSON
        return tuple(self._steps[row])


class DenseSteps:
    """Statistics of a step in which every row ran dense: known without asking the device.

    Args:
        lengths: the rows' contexts.
        budgets: what their sets might have held, or `DENSE`.
        fallbacks: why each ran dense.
        heads: KV heads of all layers and ranks.
    """

    def __init__(self, lengths: list[int], budgets: list[int], fallbacks: list[int], heads: int) -> None:
        self._lengths, self._budgets, self._fallbacks, self._heads = lengths, budgets, fallbacks, heads
        self.sparse = [False] * len(lengths)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        length = self._lengths[row]
        entries = length * self._heads
        return (entries, entries, self._fallbacks[row], self._budgets[row], length, None, len(self._lengths))


class DeviceSteps:
    """Statistics that a device is still computing; SGLang reads them by row once its own copies have arrived.

    Args:
        report: float64 [5, B] on the device, lines as in `Report`.
        heads: KV heads of all layers and ranks.
        sparse: rows in which some head may have read less than everything.
    """

    def __init__(self, report: torch.Tensor, heads: int, sparse: list[bool]) -> None:
        self._report, self._heads, self.sparse = report, heads, sparse
        self._copied: torch.Tensor | None = None
        self._rows: list[list[float]] | None = None

    def start_copy(self) -> None:
        """Starts the copy to the host on the current stream; SGLang waits for that stream before it reads."""
        target = torch.empty(self._report.shape, dtype=self._report.dtype, pin_memory=True)
        self._copied = target.copy_(self._report, non_blocking=True)
        self._report.record_stream(torch.cuda.current_stream(self._report.device))

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        if self._rows is None:
            self._rows = (self._report.cpu() if self._copied is None else self._copied).T.tolist()
        values = self._rows[row]
        context, recall = int(values[Report.CONTEXT]), values[Report.RECALL]
        return (
            int(values[Report.ATTENDED]),
            context * self._heads,
            int(values[Report.FALLBACK]),
            int(values[Report.BUDGET]),
            context,
            None if math.isnan(recall) else recall,
            len(self.sparse),
        )
