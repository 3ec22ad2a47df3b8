"""The training loop: gates, and learned sources, of a frozen model.

A step: dense prefill of a prompt without gradient; the teacher's pass over the answer; several draws of all gates; the
students' pass over the answer as rows of one batch; one step of Adam on the gates. All noise comes from the seed and
the step's number, so a state between two steps is the parameters, Adam's moments, the multiplier and the step: a
resumed training gives the same bits on the same machine.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lychee_sgl.heads.hybrid_hf import prefill
from lychee_sgl.heads.rows import check_supported, hidden_states, rows_attached
from lychee_sgl.heads.train.checkpoint import load_checkpoint, save_checkpoint
from lychee_sgl.heads.train.gated import DenseAnswer, GatedAnswer
from lychee_sgl.heads.train.gates import Gates
from lychee_sgl.heads.train.losses import CountConstraint, count_target, distillation, rate_factor
from lychee_sgl.heads.train.sources import Sources

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lychee_sgl.heads.hybrid_hf import Prefix
    from lychee_sgl.heads.measure import LoadedModel
    from lychee_sgl.heads.train.data import Data, Sample
    from lychee_sgl.heads.train.settings import TrainSettings


class TrainingError(RuntimeError):
    """A training that cannot go on; the message names the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step showed.

    Attributes:
        step: from 0.
        loss: distillation loss as a share of what it is with no gate on.
        count: expected number of heads that are not off.
        target: what it was asked to be.
        price: the constraint's multiplier.
        seconds: this step took.
    """

    step: int
    loss: float
    count: float
    target: float
    price: float
    seconds: float


@dataclass(slots=True)
class History:
    """A training's course: a list a quantity, one entry a step, and the gates' means now and then."""

    loss: list[float] = field(default_factory=list)
    count: list[float] = field(default_factory=list)
    target: list[float] = field(default_factory=list)
    price: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gate_steps: list[int] = field(default_factory=list)
    gates: list[list[list[float]]] = field(default_factory=list)

    def add(self, report: StepReport) -> None:
        """Keep a step."""
        for name in ("loss", "count", "target", "price", "seconds"):
            getattr(self, name).append(getattr(report, name))

    def as_dict(self) -> dict[str, Any]:
        """All lists by name."""
        return {name: getattr(self, name) for name in History.__slots__}


class Trainer:
    """One training of a model's gates."""

    def __init__(
        self, loaded: LoadedModel, data: Data, settings: TrainSettings, *, gain: torch.Tensor | None = None
    ) -> None:
        """Prepares step 0.

        Args:
            loaded: the model.
            data: what it is trained on.
            settings: how.
            gain: measured gains, for `measured` and `learned` sources.

        Raises:
            ValueError: a setting is out of range, the model is not supported, or gains are missing.
        """
        settings.check(loaded.shape)
        check_supported(loaded.model)
        layers, heads = loaded.shape.num_hidden_layers, loaded.shape.num_key_value_heads
        self.loaded, self.data, self.settings = loaded, data, settings
        self.gates = Gates(settings.gate, layers, heads)
        self.sources = Sources(settings.sources, layers, heads, gain)
        groups = [{"params": list(self.gates.parameters.values()), "lr": settings.rate}]
        if self.sources.parameters:
            groups.append({"params": list(self.sources.parameters.values()), "lr": settings.score_rate})
        self._rates = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
        self._adam = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-12)  # a decided gate's gradient is small
        self._start_count = float(self.gates.expected_count().detach())
        self._constraint = CountConstraint(
            heads=(layers - 1) * heads, rate=settings.constraint_rate, stiffness=settings.stiffness
        )
        self.step = 0
        self.unit: float | None = None
        self.history = History()
        self._identity = {
            **settings.as_dict(),
            "model": str(loaded.shape),
            "dtype": str(loaded.model.dtype),
            "data": data.origin,
            "gain": None if gain is None else float(gain.double().sum()),
        }

    def run(
        self,
        *,
        checkpoint: Path | None = None,
        every: int = 25,
        tell: Callable[[StepReport], None] = lambda report: None,
        until: int | None = None,
    ) -> None:
        """Train to the last step.

        Args:
            checkpoint: where the state goes, or None.
            every: steps between two states.
            tell: told about each step.
            until: stop before this step, the state saved.

        Raises:
            TrainingError: the loss or its gradient is no number; what was saved before stays.
        """
        last = self.settings.steps if until is None else min(until, self.settings.steps)
        if self.unit is None:
            self.unit = self._unit()
        while self.step < last:
            report = self._step()
            self.history.add(report)
            self.step += 1
            if self.step == 1 or self.step % max(1, self.settings.steps // 60) == 0 or self.step == self.settings.steps:
                self.history.gate_steps.append(self.step)
                self.history.gates.append([[round(z, 4) for z in row] for row in self.gates.mean().tolist()])
            if checkpoint is not None and (self.step % every == 0 or self.step == last):
                self.save(checkpoint)
            tell(report)

    def _step(self) -> StepReport:
        settings, started = self.settings, time.perf_counter()
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)
        sample = self.data.sample(self.step)
        prefix = prefill(self.loaded.model, sample.prompt)
        z = self.gates.sample(settings.draws, generator)
        noise = None
        if settings.sources == "learned":  # less and less, so that the last steps train what will be exported
            noise = self.sources.noise(settings.draws, generator) * (1.0 - self.step / settings.steps)
        unit = self.unit
        assert unit is not None
        loss = self._loss(prefix, sample, z, noise) / unit
        target = count_target(
            self.step, settings.steps, start=self._start_count, end=settings.retrieval, ramp=settings.ramp
        )
        count = self.gates.expected_count()
        total = loss.cpu() + self._constraint.penalty(count, target)
        self._adam.zero_grad(set_to_none=True)
        total.backward()
        parameters = [*self.gates.parameters.values(), *self.sources.parameters.values()]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.clip))
        seen, counted = float(loss.detach()), float(count.detach())
        if not (math.isfinite(seen) and math.isfinite(counted) and math.isfinite(norm)):
            raise TrainingError(
                f"step {self.step}: loss is {seen}, norm of its gradient {norm}; allowed: finite numbers"
            )
        factor = rate_factor(self.step, settings.steps, warmup=settings.warmup, decay=settings.decay)
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._adam.step()
        self.gates.project()
        self._constraint.update(counted, target)
        return StepReport(
            step=self.step, loss=seen, count=counted, target=target,
            price=self._constraint.multiplier, seconds=time.perf_counter() - started,
        )  # fmt: skip

    def _loss(self, prefix: Prefix, sample: Sample, z: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Distillation loss of drawn gates [B, L, H] on one sample."""
        settings, model, device = self.settings, self.loaded.model, self.loaded.device
        flat = z.flatten(1)
        if settings.chain == "deployed":
            roots = self.sources.roots(flat.detach() > 0.5, noise)
            weights = self.sources.weights(flat, noise).to(device) if flat.requires_grad else None
        else:  # as if every head retrieved: the set of the first choice
            roots = self.sources.roots(torch.ones_like(flat, dtype=torch.bool), noise)
            weights = None
        student = GatedAnswer(
            prefix=prefix, gates=z.to(device), roots=roots.to(device), weights=weights, budget=settings.budget,
            sinks=settings.sinks, recent=settings.recent, recompute=settings.recompute,
        )  # fmt: skip
        tokens = torch.tensor([sample.answer], device=device)
        with rows_attached(model):
            with torch.no_grad():
                told = hidden_states(model, DenseAnswer(prefix=prefix), tokens, len(prefix))
            said = hidden_states(model, student, tokens.expand(z.shape[0], -1), len(prefix))
        return distillation(settings.objective, said, told, model.get_output_embeddings().weight)

    def _unit(self) -> float:
        """The loss with no gate on, over the first samples: what the loss is a share of."""
        layers, heads = self.loaded.shape.num_hidden_layers, self.loaded.shape.num_key_value_heads
        off = torch.zeros(1, layers, heads)
        off[:, 0] = 1.0
        losses = []
        with torch.no_grad():
            for index in range(self.settings.reference):
                sample = self.data.sample(index)
                losses.append(float(self._loss(prefill(self.loaded.model, sample.prompt), sample, off)))
        mean = sum(losses) / len(losses)
        if not mean > 0 or not math.isfinite(mean):
            raise TrainingError(
                f"before step 0: the loss with no gate on is {mean}; allowed: a finite number above 0 (does the budget "
                "cover the whole context?)"
            )
        return mean

    def save(self, path: Path) -> None:
        """Write the state between two steps."""
        trained = {**self.gates.parameters, **self.sources.parameters}
        save_checkpoint(path, {
            "identity": self._identity,
            "step": self.step,
            "unit": self.unit,
            "multiplier": self._constraint.multiplier,
            "parameters": {name: value.detach() for name, value in trained.items()},
            "adam": self._adam.state_dict(),
            "history": self.history.as_dict(),
        })  # fmt: skip

    def resume(self, path: Path) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is not a state of this training.
            OSError: it cannot be read.
        """
        state = load_checkpoint(path, self._identity)
        trained = {**self.gates.parameters, **self.sources.parameters}
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(state["parameters"][name])
        self._adam.load_state_dict(state["adam"])
        self._constraint.multiplier = state["multiplier"]
        self.step, self.unit = state["step"], state["unit"]
        self.history = History(**state["history"])
