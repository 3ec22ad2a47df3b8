"""The training loop of a compressor: adapter, memory tokens and readout; the model itself stays as it is.

A step draws one ratio and a batch of windows, compresses them, and lets the frozen model reconstruct, continue and
answer from the blocks. Samples and ratio follow from the seed and the step's number, so a state between two steps is
the trained weights, AdamW's moments and the step.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pickle import UnpicklingError
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from lychee_sgl.compressor.reader import read, task_losses
from lychee_sgl.heads.train.checkpoint import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lychee_sgl.compressor.data import Samples
    from lychee_sgl.compressor.model import Compressor
    from lychee_sgl.compressor.settings import TrainSettings

_FAR = 1_000_000_000
"""Steps from here on are no training's: their samples are used to take the time."""


def planned_steps(path: Path) -> int:
    """How many steps the training of a state is to have.

    Raises:
        ValueError: it is no state of a training.
        OSError: it cannot be read.
    """
    try:
        steps: int = torch.load(path, map_location="cpu", weights_only=True)["identity"]["steps"]
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path} is not a checkpoint: {' '.join(str(error).split())[:200]}") from error
    return steps


class TrainingError(ValueError):
    """A training that cannot go on; the message names the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step showed.

    Attributes:
        step: from 0.
        ratio: its ratio.
        losses: mean loss of each task, in nats a token.
        seconds: it took.
    """

    step: int
    ratio: int
    losses: dict[str, float]
    seconds: float


class Trainer:
    """One training of a compressor."""

    def __init__(
        self, compressor: Compressor, samples: Samples, settings: TrainSettings, identity: dict[str, Any]
    ) -> None:
        """Prepares step 0.

        Args:
            compressor: is trained in place.
            samples: what it is trained on.
            settings: how.
            identity: what else has to agree for a state to go on: model and text.
        """
        self.compressor, self.samples, self.settings = compressor, samples, settings
        self._trained = compressor.trained()
        self._adam = torch.optim.AdamW(self._trained.values(), lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0)
        self._identity = {**settings.as_dict(), "shape": repr(compressor.shape), **identity}
        self.step = 0
        self.history: list[list[float]] = []  # ratio, seconds, then the losses in the order of TASKS

    def run(
        self,
        *,
        state: Path | None = None,
        every: int = 200,
        until: float | None = None,
        tell: Callable[[StepReport], None] = lambda report: None,
    ) -> bool:
        """Train on.

        Args:
            state: where the state goes, or None.
            every: steps between two states.
            until: a time of `time.monotonic` at which to stop.
            tell: told about each step.

        Returns:
            Whether the last step is done; if not, the state is saved.

        Raises:
            TrainingError: the loss or its gradient is no number; what was saved before stays.
        """
        saved = False
        while self.step < self.settings.steps and (until is None or time.monotonic() < until):
            report = self._step()
            self.history.append(
                [report.ratio, round(report.seconds, 4), *(round(v, 5) for v in report.losses.values())]
            )
            self.step += 1
            saved = state is not None and self.step % every == 0
            if state is not None and saved:
                self.save(state)
            tell(report)
        if state is not None and not saved:
            self.save(state)
        return self.step >= self.settings.steps

    def pace(self, rounds: int = 3) -> float:
        """Seconds a step takes here, a mean over all ratios; nothing is trained."""
        taken = []
        for number in range(rounds):
            for ratio in self.compressor.shape.ratios:
                started = time.perf_counter()
                loss = sum(self._losses(_FAR + number, ratio).values())
                assert isinstance(loss, torch.Tensor)
                loss.backward()
                float(loss.detach())  # waits for the device
                if number or rounds == 1:
                    taken.append(time.perf_counter() - started)
        self._adam.zero_grad(set_to_none=True)
        return sum(taken) / len(taken)

    def save(self, path: Path) -> None:
        """Write the state between two steps."""
        save_checkpoint(path, {
            "identity": self._identity,
            "step": self.step,
            "trained": {name: value.detach() for name, value in self._trained.items()},
            "adam": self._adam.state_dict(),
            "history": self.history,
        })  # fmt: skip

    def resume(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is not a state of this training.
            OSError: it cannot be read.
        """
        kept = load_checkpoint(path, self._identity)
        with torch.no_grad():
            for name, value in self._trained.items():
                value.copy_(kept["trained"][name])
        self._adam.load_state_dict(kept["adam"])
        self.step, self.history = kept["step"], kept["history"]

    def ratio(self, step: int) -> int:
        """The ratio of a step."""
        return Random(f"lychee-sgl ratio {self.settings.seed} {step}").choice(self.compressor.shape.ratios)

    def _losses(self, step: int, ratio: int) -> dict[str, torch.Tensor]:
        batch = self.samples.batch(step)
        device = self.compressor.device
        tokens = torch.tensor([sample.window for sample in batch], device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            blocks = self.compressor(tokens, ratio)
            return task_losses(read(self.compressor, batch, list(blocks)), batch)

    def _step(self) -> StepReport:
        started, ratio = time.perf_counter(), self.ratio(self.step)
        losses = self._losses(self.step, ratio)
        loss = torch.stack(list(losses.values())).mean()
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained.values(), self.settings.clip))
        seen = {task: float(value.detach()) for task, value in losses.items()}
        if not all(map(math.isfinite, (*seen.values(), norm))):
            raise TrainingError(
                f"step {self.step}: losses are {seen}, norm of the gradient {norm}; allowed: finite ones"
            )
        for group in self._adam.param_groups:
            group["lr"] = self.settings.rate * self.settings.factor(self.step)
        self._adam.step()
        return StepReport(step=self.step, ratio=ratio, losses=seen, seconds=time.perf_counter() - started)
