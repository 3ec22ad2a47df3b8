"""Live speedup: what an answer's decoding took against what the speed curve says that dense decoding takes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lychee_server.catalogue import Uncounted
    from lychee_server.curve import SpeedCurve
    from lychee_server.metrics import GatewayMetrics
    from lychee_server.schemas import EngineSummary, SparsityInfo

log = logging.getLogger(__name__)


class SpeedReference:
    """Holds answers against the curve, as long as it was measured on an engine like the one that answers."""

    def __init__(self, curve: SpeedCurve | None, metrics: GatewayMetrics) -> None:
        self._curve = curve
        self._metrics = metrics
        self._foreign: set[str] = set()
        if curve is not None:
            metrics.curve_loaded(curve.model, curve.plan.name, curve.device, curve.date)

    def engine_ready(self, engine: str, info: SparsityInfo | None) -> None:
        """Compare a ready engine with the one that was measured, and warn where they differ.

        Args:
            engine: its name.
            info: what it says of itself; None for an SGLang without the plug-in, which gives no summaries either.
        """
        if self._curve is None or info is None:
            return
        differences = self._curve.differences(info)
        self._metrics.curve_compared(engine, differences)
        if not differences:
            self._foreign.discard(engine)
            return
        self._foreign.add(engine)
        log.warning(
            "the speed curve is another engine's: no speedup is counted; run `lychee-sgl calibrate` on this one",
            extra={"engine": engine, "other": ", ".join(differences)},
        )

    def answered(self, engine: str, summary: EngineSummary, choices: int) -> None:
        """Count a complete answer.

        Args:
            engine: name of the engine that gave it.
            summary: the engine's account of it.
            choices: how many answers the request asked for.
        """
        reason = self._count(engine, summary, choices)
        if reason is not None:
            self._metrics.speedup_uncounted(reason)

    def _count(self, engine: str, summary: EngineSummary, choices: int) -> Uncounted | None:
        if self._curve is None:
            return "no_curve"
        if engine in self._foreign:
            return "other_engine"
        if summary.policy is not None:
            return "other_policy"
        if not summary.decode_steps or not summary.decode_seconds or summary.mean_batch is None:
            return "not_timed"
        if summary.memory is not None:
            return "not_timed"  # steps of many calls, each with a context of its own, added up
        # The context grows by one at each step, and the curve is a line in it: the middle stands for all steps.
        middle = summary.context_tokens - summary.decode_steps / choices / 2
        dense = self._curve.itl_ms("dense", middle, summary.mean_batch)
        if dense is None:
            return "outside_curve"
        self._metrics.speedup(summary, dense * summary.decode_steps / 1000)
        return None
