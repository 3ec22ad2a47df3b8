"""The training loop of a compressor: adapter, memory tokens and readout; the model itself stays as it is.

A step draws one ratio and a batch of windows, compresses them, and lets the frozen model reconstruct, continue and
answer from the blocks. Samples and ratio follow from the seed and the step's number, so a state between two steps is
the trained weights, AdamW's moments and the step.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from lychee_sgl.compressor.course import FAR, Course
from lychee_sgl.compressor.parts import Parts
from lychee_sgl.compressor.reader import read, task_losses
from lychee_sgl.compressor.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.compressor.data import Sample, Samples
    from lychee_sgl.compressor.model import Compressor


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


class Trainer(Course[TrainSettings, StepReport]):
    """One training of a compressor. A row of its history: ratio, seconds, then the losses in the order of `TASKS`."""

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
        super().__init__(compressor, settings, identity)
        self.samples = samples
        self._parts: Parts[Sample, dict[str, float]] = Parts(settings.batch)

    def ratio(self, step: int) -> int:
        """The ratio of a step."""
        return Random(f"lychee-sgl ratio {self.settings.seed} {step}").choice(self.compressor.shape.ratios)

    def pace(self, rounds: int = 3) -> float:
        """Seconds a step takes here, a mean over all ratios; nothing is trained."""
        taken = []
        for number in range(rounds):
            for ratio in self.compressor.shape.ratios:
                began = time.perf_counter()
                self._losses(self.samples.batch(FAR + number), ratio)
                if self.compressor.device.type == "cuda":
                    torch.cuda.synchronize(self.compressor.device)
                if number or rounds == 1:
                    taken.append(time.perf_counter() - began)
        self._forget()
        return sum(taken) / len(taken)

    def held_out_loss(self, rounds: int = 4) -> float:
        """Mean loss over all tasks and ratios on samples that no training draws."""
        losses = []
        with torch.no_grad():
            for number in range(rounds):
                for ratio in self.compressor.shape.ratios:
                    losses += list(self._losses(self.samples.batch(2 * FAR + number), ratio, learn=False).values())
        return sum(losses) / len(losses)

    def _losses(self, batch: Sequence[Sample], ratio: int, *, learn: bool = True) -> dict[str, float]:
        """The mean loss of each task; `learn`: adds the gradient of their mean to what stands there."""
        tokens = Counter(sample.task for sample in batch for _ in sample.target)
        device = self.compressor.device

        def part(some: Sequence[Sample]) -> dict[str, float]:
            windows = torch.tensor([sample.window for sample in some], device=device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                blocks = self.compressor(windows, ratio)
                losses = task_losses(read(self.compressor, some, list(blocks)), some)
            here = Counter(sample.task for sample in some for _ in sample.target)
            shares = {task: loss * (here[task] / tokens[task]) for task, loss in losses.items()}
            if learn:
                (torch.stack(list(shares.values())).sum() / len(tokens)).backward()
            return {task: float(share.detach()) for task, share in shares.items()}

        found = self._parts.run(batch, part, self._forget)
        return {task: sum(one.get(task, 0.0) for one in found) for task in tokens}

    def _advance(self) -> tuple[StepReport, list[float]]:
        started, ratio = time.perf_counter(), self.ratio(self.step)
        self._forget()
        losses = self._losses(self.samples.batch(self.step), ratio)
        self._descend(self.settings.clip, f"losses are {losses}", list(losses.values()))
        seconds = time.perf_counter() - started
        report = StepReport(step=self.step, ratio=ratio, losses=losses, seconds=seconds)
        return report, [ratio, seconds, *losses.values()]
