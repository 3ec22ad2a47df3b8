"""What trainings of a compressor share: the loop over steps, the descent, and the state between two steps."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import torch

from lychee_sgl.heads.train.checkpoint import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lychee_sgl.compressor.model import Compressor

FAR: Final = 1_000_000_000
"""Steps from here on are no training's: what they draw serves to take the time, and to compare."""


SAVED_AGAIN: Final = 180.0
"""Seconds after which a state is saved, however few steps they were: what a kill costs at most."""


class TrainingError(ValueError):
    """A training that cannot go on; the message names the step."""


class Schedule(Protocol):
    """What a course reads of its settings."""

    @property
    def steps(self) -> int:
        """There are to be."""
        ...

    @property
    def rate(self) -> float:
        """The learning rate."""
        ...

    def factor(self, step: int) -> float:
        """Of the learning rate in a step."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """For identities."""
        ...


S = TypeVar("S", bound=Schedule)
R = TypeVar("R")


class Course(ABC, Generic[S, R]):
    """A training of a compressor, step by step; `R` is what a step reports.

    Attributes:
        compressor: is trained in place.
        settings: how.
        step: the next one.
        history: a row of numbers for each step that is done.
        extra: what else the state keeps, plain values.
    """

    def __init__(self, compressor: Compressor, settings: S, identity: dict[str, Any]) -> None:
        """Prepares step 0.

        Args:
            compressor: is trained in place.
            settings: how.
            identity: what else has to agree for a state to go on.
        """
        self.compressor, self.settings = compressor, settings
        self._trained = compressor.trained()
        self._adam = torch.optim.AdamW(self._trained.values(), lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0)
        self._identity = {**settings.as_dict(), "shape": repr(compressor.shape), **identity}
        self.step = 0
        self.history: list[list[float]] = []
        self.extra: dict[str, Any] = {}

    def run(
        self,
        *,
        state: Path | None = None,
        every: int = 200,
        until: float | None = None,
        tell: Callable[[R], None] = lambda report: None,
    ) -> bool:
        """Train on.

        Args:
            state: where the state goes, or None.
            every: most steps between two states; none is further apart than `SAVED_AGAIN`, but for a step.
            until: a time of `time.monotonic` at which to stop.
            tell: told about each step.

        Returns:
            Whether the last step is done; if not, the state is saved.

        Raises:
            TrainingError: something is no number; what was saved before stays.
        """
        saved, last = False, time.monotonic()
        while self.step < self.settings.steps and (until is None or time.monotonic() < until):
            report, row = self._advance()
            self.history.append([round(value, 5) for value in row])
            self.step += 1
            saved = state is not None and (self.step % every == 0 or time.monotonic() - last > SAVED_AGAIN)
            if state is not None and saved:
                self.save(state)
                last = time.monotonic()
            tell(report)
        if state is not None and not saved:
            self.save(state)
        return self.step >= self.settings.steps

    def save(self, path: Path) -> None:
        """Write the state between two steps."""
        save_checkpoint(path, {
            "identity": self._identity,
            "step": self.step,
            "trained": {name: value.detach() for name, value in self._trained.items()},
            "adam": self._adam.state_dict(),
            "history": self.history,
            "extra": self.extra,
        })  # fmt: skip

    def resume(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is not a state of this training.
            OSError: it cannot be read.
        """
        kept = load_checkpoint(path, self._identity)
        self.put(kept["trained"])
        self._adam.load_state_dict(kept["adam"])
        self.step, self.history, self.extra = kept["step"], kept["history"], kept.get("extra", {})

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of all that is trained."""
        return {name: value.detach().clone() for name, value in self._trained.items()}

    def put(self, weights: dict[str, torch.Tensor]) -> None:
        """Take weights that `weights` gave."""
        with torch.no_grad():
            for name, value in self._trained.items():
                value.copy_(weights[name])

    @abstractmethod
    def _advance(self) -> tuple[R, list[float]]:
        """Take a step; what it showed, for people and for the history."""

    def _forget(self) -> None:
        self._adam.zero_grad(set_to_none=True)

    def _descend(self, clip: float, told: str, seen: list[float]) -> None:
        """Move along the gradient that stands there.

        Args:
            clip: its greatest length.
            told: what the numbers are, for an error.
            seen: numbers that have to be finite, beside the gradient's length.

        Raises:
            TrainingError: one is not.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained.values(), clip))
        if not all(map(math.isfinite, (*seen, norm))):
            raise TrainingError(f"step {self.step}: {told}, norm of the gradient {norm}; allowed: finite ones")
        for group in self._adam.param_groups:
            group["lr"] = self.settings.rate * self.settings.factor(self.step)
        self._adam.step()


def is_complete(record: Path) -> bool:
    """Whether the record of a training says that there is nothing left to go on with."""
    try:
        told = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("complete") is True


def planned(path: Path, key: str) -> Any:
    """What the training of a state is to have: steps, rate.

    Raises:
        ValueError: it is no state of a training.
        OSError: it cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["identity"][key]
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path} is not a checkpoint: {' '.join(str(error).split())[:200]}") from error
