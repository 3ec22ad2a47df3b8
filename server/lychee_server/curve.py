"""The engine's speed curve: time per token against budget, context and batch, as `lychee-sgl calibrate` measured it."""

from __future__ import annotations

import bisect
import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lychee_server.schemas import SparsityInfo

MARGIN: Final = 1.25
"""How far outside what was measured an answer is still given: by this factor, on each axis."""

Dense = Literal["dense"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class CurveError(ValueError):
    """A speed curve cannot be used; the message is one line that names file, field and value."""


class CurvePlan(BaseModel):
    """The head plan that was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str


class CurveEngine(BaseModel):
    """What ran: versions, kind of device (as SGLang says it), and the context up to which everything runs dense."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lychee: str
    sglang: str | None = None
    device: str
    dense_below: Annotated[int, Field(ge=0)]


class CurvePoint(BaseModel):
    """One measurement.

    Attributes:
        budget: tokens a sparse head could read, or dense.
        context: tokens in the context, in the middle of the measured steps.
        batch: requests that decoded at the same time.
        itl_ms: time between two tokens of one request, in milliseconds; the median.
        spread_ms: the distance between the quartiles.
        samples: how many gaps between tokens were measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Count | Dense
    context: Count
    batch: Count
    itl_ms: Positive
    spread_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    samples: Count


class SpeedCurve(BaseModel):
    """Time per token of one engine, with the identity of that engine and of its hardware.

    Between measured points the time is interpolated: linear in context and batch, linear in the logarithm of the
    budget, never above or below its neighbours. Where noise makes the measured times fall although context, batch
    or budget rise, a point counts as the mean of the largest time measured at no more of anything and the smallest
    at no less: what rises anyway stays as it was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_name: Literal["lychee-sgl/speed-curve"] = Field(alias="schema")
    version: Literal[1]
    model: str
    plan: CurvePlan
    device: str
    engine: CurveEngine
    date: str
    command: str
    points: Annotated[tuple[CurvePoint, ...], Field(min_length=1)]

    @field_validator("points")
    @classmethod
    def _one_dense_and_no_twins(cls, points: tuple[CurvePoint, ...]) -> tuple[CurvePoint, ...]:
        places = [(point.budget, point.context, point.batch) for point in points]
        twice = next((place for place in places if places.count(place) > 1), None)
        if twice is not None:
            raise ValueError(f"budget, context and batch {twice} are there twice")
        if not any(point.budget == "dense" for point in points):
            raise ValueError("there is no dense point")
        return points

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a curve from a JSON file.

        Raises:
            CurveError: the file cannot be read, is no JSON or has a wrong field.
        """
        try:
            return cls.model_validate(json.loads(Path(path).read_bytes()))
        except OSError as error:
            raise CurveError(f"{path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CurveError(f"{path}: {where} is {first['input']!r:.80}: {first['msg']}") from error
        except ValueError as error:
            raise CurveError(f"{path}: no JSON: {error}") from error

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets that were measured, rising, without dense."""
        return tuple(sorted({point.budget for point in self.points if isinstance(point.budget, int)}))

    def itl_ms(self, budget: int | Dense, context: float, batch: float) -> float | None:
        """Say how long a token takes.

        Args:
            budget: tokens a sparse head may read, or `"dense"`. As in the engine, a budget that covers the context is
                dense, and so is every budget up to the engine's `dense_below`.
            context: tokens in the context.
            batch: requests that decode at the same time.

        Returns:
            Milliseconds; None where the place is outside what was measured by more than `MARGIN` on an axis. Inside
            that margin the time of the smallest context, batch or budget holds below it, and the line through the
            last two goes on beyond the largest.
        """
        measured = self._measured

        def at(key: int | Dense) -> float | None:
            runs_dense = isinstance(key, str) or key >= context or context <= self.engine.dense_below
            batches = measured["dense" if runs_dense else key]
            return _line(sorted(batches), batch, lambda b: _line(sorted(batches[b]), context, batches[b].get))

        if isinstance(budget, str) or budget >= context or context <= self.engine.dense_below:
            return at("dense")
        return _line(self.budgets, budget, at, math.log)

    def differences(self, engine: SparsityInfo) -> list[str]:
        """Name what the curve was measured with and this engine does not run with; what is not known is left out."""
        pairs = {
            "model": (self.model, engine.model),
            "plan": (self.plan.sha256, engine.plan.sha256),
            "dense_below": (self.engine.dense_below, engine.dense_below),
            "device": (self.engine.device, engine.device),
            "lychee": (self.engine.lychee, engine.version),
            "sglang": (self.engine.sglang, engine.sglang),
        }
        return [name for name, (ours, theirs) in pairs.items() if None not in (ours, theirs) and ours != theirs]

    @functools.cached_property
    def _measured(self) -> dict[int | Dense, dict[int, dict[int, float]]]:
        """Times by budget, batch and context, rising in each."""
        found: dict[int | Dense, dict[int, dict[int, float]]] = {}
        for point in self.points:
            below = max(other.itl_ms for other in self.points if _is_no_more(other, point))
            above = min(other.itl_ms for other in self.points if _is_no_more(point, other))
            found.setdefault(point.budget, {}).setdefault(point.batch, {})[point.context] = (below + above) / 2
        return found


def _is_no_more(a: CurvePoint, b: CurvePoint) -> bool:
    """Whether `a` reads no more than `b`. Dense and sparse are different code: neither bounds the other."""
    if isinstance(a.budget, str) or isinstance(b.budget, str):
        comparable = a.budget == b.budget
    else:
        comparable = a.budget <= b.budget
    return comparable and a.context <= b.context and a.batch <= b.batch


def _line(
    places: Sequence[int],
    x: float,
    value: Callable[[int], float | None],
    scale: Callable[[float], float] = float,
) -> float | None:
    """Interpolate between the two of the rising places around x; None where one of them has no value."""
    if not places[0] / MARGIN <= x <= places[-1] * MARGIN:
        return None
    if x <= places[0] or len(places) == 1:
        return value(places[0])
    right = min(max(bisect.bisect_left(places, x), 1), len(places) - 1)
    if places[right] == x:
        return value(places[right])
    low, high = places[right - 1], places[right]
    a, b = value(low), value(high)
    if a is None or b is None:
        return None
    return a + (b - a) * (scale(x) - scale(low)) / (scale(high) - scale(low))
