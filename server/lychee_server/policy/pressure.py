"""How hard the engines are pressed: one level between 0 and 1, smoothed, that moves in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, ValidationError

if TYPE_CHECKING:
    from lychee_server.policy.schema import Pressure

_STEP = 0.15
"""The level in force follows the smoothed one when they are this far apart: noise does not move budgets."""


class EngineLoad(BaseModel):
    """One scheduler's load, as SGLang's `GET /v1/loads?include=core` gives it."""

    num_waiting_reqs: int = Field(ge=0)
    token_usage: float = Field(ge=0, allow_inf_nan=False)


class _Loads(BaseModel):
    loads: list[EngineLoad]


def parse_loads(body: bytes) -> list[EngineLoad] | None:
    """Read the answer of `/v1/loads`; None when it is none."""
    try:
        return _Loads.model_validate_json(body).loads
    except ValidationError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What pressure is made of.

    Attributes:
        queue: requests that wait, in the gateway and in the engines.
        kv_use: share of the KV pool that running requests hold, of the fullest engine.
    """

    queue: int = 0
    kv_use: float = 0.0

    @classmethod
    def of(cls, waiting: int, loads: list[EngineLoad]) -> Signals:
        """Put together what waits in the gateway and what the engines say."""
        return cls(
            queue=waiting + sum(load.num_waiting_reqs for load in loads),
            kv_use=max((load.token_usage for load in loads), default=0.0),
        )


class PressureGauge:
    """The level of pressure.

    Attributes:
        signals: the last ones.
        level: in force now, in [0, 1].
    """

    def __init__(self) -> None:
        self.signals = Signals()
        self.level = 0.0
        self._smooth = 0.0
        self._looked: float | None = None

    def update(self, signals: Signals, settings: Pressure | None, now: float) -> None:
        """Take the signals of a moment, in seconds of a steady clock. Without settings there is no pressure."""
        self.signals = signals
        if settings is None:
            self.level = self._smooth = 0.0
            self._looked = None
            return
        aim = max(settings.queue.level(signals.queue), settings.kv_use.level(signals.kv_use))
        passed = settings.interval if self._looked is None else max(0.0, now - self._looked)
        self._looked = now
        constant = settings.rise_seconds if aim > self._smooth else settings.fall_seconds
        self._smooth += (aim - self._smooth) * (1 - math.exp(-passed / constant))
        at_an_end = (aim == 0 and self._smooth < _STEP / 2) or (aim == 1 and self._smooth > 1 - _STEP / 2)
        if at_an_end:
            self.level = aim
        elif abs(self._smooth - self.level) >= _STEP:
            self.level = round(self._smooth, 2)


def shrunk(budget: int, floor: int, level: float) -> int:
    """Return a budget under pressure: on the way from itself (level 0) to the floor (level 1), in equal ratios."""
    if budget <= floor or level <= 0:
        return budget
    return max(floor, round(budget * math.pow(floor / budget, level)))
