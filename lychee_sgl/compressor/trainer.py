"""The training loop of a compressor: adapter, memory tokens and readout; the model itself stays as it is.

A step draws one ratio and a batch of windows, compresses them, and lets the frozen model reconstruct, continue and
answer from the blocks. A reader with an adapter also reads some windows whole, and is held to what the plain model
makes of them: what it is for besides blocks. Samples and ratio follow from the seed and the step's number, so a state
between two steps is the trained weights, AdamW's moments and the step.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from lychee_sgl.compressor.course import FAR, Course
from lychee_sgl.compressor.parts import Parts
from lychee_sgl.compressor.reader import divergence, on_device, read, task_means
from lychee_sgl.compressor.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lychee_sgl.compressor.data import Sample, Samples
    from lychee_sgl.compressor.model import Compressor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step showed.

    Attributes:
        step: from 0.
        ratio: its ratio.
        losses: mean loss of each task, in nats a token.
        drift: of the reader from the plain model on whole text, in nats a token; 0 where there is none to hold.
        seconds: it took.
    """

    step: int
    ratio: int
    losses: dict[str, float]
    drift: float
    seconds: float


class Trainer(Course[TrainSettings, StepReport]):
    """One training of a compressor. A row of its history: ratio, seconds, the losses in the order of `TASKS`, drift."""

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
        self._parts: Parts[Sample, dict[str, torch.Tensor]] = Parts(settings.batch)
        self._whole: Parts[Sample, dict[str, torch.Tensor]] = Parts(settings.batch)
        self._drawn: tuple[int, Sequence[Sample]] = (-1, ())

    def ratio(self, step: int) -> int:
        """The ratio of a step: the lower ones, which learn first, more often."""
        ratios = self.compressor.shape.ratios
        draw = Random(f"lychee-sgl ratio {self.settings.seed} {step}")
        return draw.choices(ratios, weights=odds(ratios))[0]

    def pace(self, rounds: int = 3) -> float:
        """Seconds a step takes here, a mean over all ratios as often as they are drawn; nothing is trained."""
        ratios = self.compressor.shape.ratios
        taken: dict[int, list[float]] = {ratio: [] for ratio in ratios}
        for number in range(rounds):
            for ratio in ratios:
                began = time.perf_counter()
                self._learn(self.samples.batch(FAR + number), ratio)
                if self.compressor.device.type == "cuda":
                    torch.cuda.synchronize(self.compressor.device)
                if number or rounds == 1:
                    taken[ratio].append(time.perf_counter() - began)
        self._forget()
        return sum(fmean(taken[ratio]) * share for ratio, share in zip(ratios, odds(ratios), strict=True))

    def held_out_loss(self, rounds: int = 4) -> float:
        """Mean loss over all tasks and ratios on samples that no training draws."""
        losses: list[float] = []
        with torch.no_grad():
            for number in range(rounds):
                for ratio in self.compressor.shape.ratios:
                    batch = self.samples.batch(2 * FAR + number)
                    losses += map(float, self._means(self._parts, batch, self._losses(ratio), 0.0).values())
        return fmean(losses)

    def _learn(self, batch: Sequence[Sample], ratio: int) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """The mean loss of each task, and the reader's drift; their gradient and no other stands there then.

        Nothing waits for the device.
        """

        def tasks() -> dict[str, torch.Tensor]:
            self._forget()
            return self._means(self._parts, batch, self._losses(ratio), 1.0)

        losses, drift, settings = tasks(), None, self.settings
        if self.compressor.has_reader and settings.keep:
            # when memory is out the second time, the first gradient is gone, too
            drifts = self._means(self._whole, fifth(batch), self._drift, settings.keep, again=tasks)
            drift = torch.stack(list(drifts.values())).mean()
        return losses, drift

    def _means(
        self,
        parts: Parts[Sample, dict[str, torch.Tensor]],
        batch: Sequence[Sample],
        look: Callable[[Sequence[Sample], torch.Tensor], torch.Tensor],
        weight: float,
        again: Callable[[], Any] | None = None,
    ) -> dict[str, torch.Tensor]:
        """For each task the mean of what `look` finds for its tokens.

        Args:
            parts: in how many to compute.
            batch: samples.
            look: a value for each token that is to be said, [T], of some samples and their texts' tokens, one after
                another.
            weight: above 0: adds the gradient of so many times the mean over tasks to what stands there.
            again: what is to be done before it begins anew; None: forget gradients.
        """
        tokens, device = _tokens(batch), self.compressor.device

        def part(some: Sequence[Sample]) -> dict[str, torch.Tensor]:
            (flat,) = on_device(device, [token for sample in some for token in sample.window])
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                means = task_means(look(some, flat), some)
            here = _tokens(some)
            shares = {task: mean * (here[task] / tokens[task]) for task, mean in means.items()}
            if weight:
                (weight * torch.stack(list(shares.values())).sum() / len(tokens)).backward()
            return {task: share.detach() for task, share in shares.items()}

        found = parts.run(batch, part, again or self._forget)
        return {task: torch.stack([one[task] for one in found if task in one]).sum() for task in tokens}

    def _losses(self, ratio: int) -> Callable[[Sequence[Sample], torch.Tensor], torch.Tensor]:
        def look(some: Sequence[Sample], flat: torch.Tensor) -> torch.Tensor:
            blocks = self.compressor(flat.unflatten(0, (-1, self.samples.window)), ratio).flatten(0, 1)
            return read(self.compressor, some, blocks.split([len(one.window) // ratio for one in some])).loss

        return look

    def _drift(self, some: Sequence[Sample], flat: torch.Tensor) -> torch.Tensor:
        return divergence(self.compressor, some, self.compressor.embed(flat).split([len(one.window) for one in some]))

    def _batch(self, step: int) -> Sequence[Sample]:
        if self._drawn[0] != step:
            self._drawn = (step, self.samples.batch(step))
        return self._drawn[1]

    def _advance(self) -> tuple[StepReport, list[float]]:
        started, ratio = time.perf_counter(), self.ratio(self.step)
        learnt, drifted = self._learn(self._batch(self.step), ratio)
        if self.step + 1 < self.settings.steps:
            self._batch(self.step + 1)  # drawn while the device computes
        losses = dict(zip(learnt, torch.stack(list(learnt.values())).tolist(), strict=True))
        drift = 0.0 if drifted is None else float(drifted)
        self._descend(self.settings.clip, f"losses are {losses}, drift {drift}", [*losses.values(), drift])
        seconds = time.perf_counter() - started
        report = StepReport(step=self.step, ratio=ratio, losses=losses, drift=drift, seconds=seconds)
        return report, [ratio, seconds, *losses.values(), drift]


def odds(ratios: Sequence[int]) -> list[float]:
    """How often each ratio is drawn, as shares: of four 4, 3, 2 and 1 tenths."""
    count = len(ratios)
    return [2 * (count - place) / (count * (count + 1)) for place in range(count)]


def fifth(batch: Sequence[Sample]) -> list[Sample]:
    """The first fifth of each task's samples, one of each at least."""
    counts, taken = Counter(sample.task for sample in batch), Counter[str]()
    some = []
    for sample in batch:
        taken[sample.task] += 1
        if taken[sample.task] <= -(-counts[sample.task] // 5):
            some.append(sample)
    return some


def _tokens(batch: Sequence[Sample]) -> dict[str, int]:
    """To be said, of each task."""
    counts: dict[str, int] = {}
    for sample in batch:
        counts[sample.task] = counts.get(sample.task, 0) + len(sample.places)
    return counts
