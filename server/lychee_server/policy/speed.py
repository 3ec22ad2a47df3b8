"""The largest budget that is fast enough, by the engine's measured speed curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Dense = Literal["dense"]


class Times(Protocol):
    """What is asked of a `SpeedCurve`."""

    @property
    def budgets(self) -> tuple[int, ...]:
        """The measured budgets, rising."""

    def itl_ms(self, budget: int | Dense, context: float, batch: float) -> float | None:
        """Milliseconds a token takes; None outside what was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A budget for a speed, and how it was found; without one, the curve says nothing of this place."""

    budget: int | Dense | None
    says: str


def fastest_within(times: Times | None, target_ms: float, context: int, batch: int) -> Speed:
    """Find the largest budget with which a token takes at most so long.

    A budget that covers the context is dense. Where no budget is fast enough, and where the curve does not reach, it
    is the smallest one measured: the fastest there is.

    Args:
        times: the curve; None: there is none.
        target_ms: the longest time of a token.
        context: tokens in the context.
        batch: requests that decode at the same time.
    """
    if times is None or not times.budgets:
        return Speed(budget=None, says="there is no speed curve of this engine: the head plan decides")
    where = f"{context} tokens and a batch of {batch}"
    dense = times.itl_ms("dense", context, batch)
    if dense is not None and dense <= target_ms:
        return Speed(budget="dense", says=f"dense decoding takes {dense:.3g} ms a token at {where}")
    low = times.budgets[0]
    fastest = times.itl_ms(low, context, batch)
    if fastest is None:
        return Speed(budget=low, says=f"the curve does not reach {where}: the smallest budget measured, {low}")
    if fastest > target_ms:
        return Speed(budget=low, says=f"at {where} even {low} tokens take {fastest:.3g} ms a token")
    high = min(times.budgets[-1], context - 1)
    while low < high:  # times never fall with the budget, so the border can be halved in on
        middle = (low + high + 1) // 2
        taken = times.itl_ms(middle, context, batch)
        if taken is not None and taken <= target_ms:
            low = middle
        else:
            high = middle - 1
    return Speed(budget=low, says=f"{low} tokens take {times.itl_ms(low, context, batch):.3g} ms a token at {where}")
