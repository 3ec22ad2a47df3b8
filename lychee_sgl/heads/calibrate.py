"""Calibration: from a model to its head plan."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import torch
import transformers

from lychee_sgl.heads.cover import greedy_cover
from lychee_sgl.heads.gains import WEIGHTINGS, Weighting, measure_gains
from lychee_sgl.heads.measure import LoadedModel, prefilled
from lychee_sgl.heads.needles import needle_prompts
from lychee_sgl.heads.plan import HeadPlan, ModelShape, PlanDefaults
from lychee_sgl.heads.ranks import check_tp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a calibration is asked for.

    Attributes:
        retrieval: retrieval heads, those of layer 0 included.
        budget: tokens in a set, sinks and recent tokens included; becomes the plan's default.
        weighting: what a set is worth to a head (see `gains.measure_gains`).
        seed: of the calibration prompts.
        prompts: how many.
        context: tokens of the longest; the shortest has half.
        sinks: first tokens always kept.
        recent: last tokens always kept.
        tp: ranks that the plan is to be balanced for.
    """

    retrieval: int
    budget: int
    weighting: Weighting = "effect"
    seed: int = 0
    prompts: int = 8
    context: int = 3000
    sinks: int = 64
    recent: int = 256
    tp: int = 1

    def check(self, shape: ModelShape, window: int | None = None) -> None:
        """Refuse what cannot be done with this model.

        Args:
            shape: of the model.
            window: its longest context, where that is known.

        Raises:
            ValueError: a setting is out of range; the message names it, its value and what is allowed.
        """
        check_tp(shape, self.tp)
        least, most = shape.num_key_value_heads, shape.num_hidden_layers * shape.num_key_value_heads
        if not least <= self.retrieval <= most:
            raise ValueError(
                f"retrieval heads is {self.retrieval}; allowed: {least} (layer 0 alone) to {most} (all) for {shape}"
            )
        least_of = (("budget", self.budget, 1), ("prompts", self.prompts, 1), ("context", self.context, 64))
        for name, value, low in least_of:
            if value < low:
                raise ValueError(f"{name} is {value}; allowed: {low} or more")
        if window is not None and self.context + 256 > window:  # 256: question, chat template and answer
            raise ValueError(f"context is {self.context}; allowed: up to {window - 256} for {shape.name}")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting is {self.weighting!r}; allowed: {', '.join(WEIGHTINGS)}")


def measured_gains(
    loaded: LoadedModel,
    settings: Settings,
    *,
    weightings: tuple[Weighting, ...],
    progress: Callable[[int], None] = lambda done: None,
    cache: Path | None = None,
) -> dict[Weighting, torch.Tensor]:
    """Gains over all calibration prompts: each prompt's divided by all that its heads need, so that all count alike.

    Args:
        loaded: the model.
        settings: seed, number and length of the prompts, budget.
        weightings: which worths to measure.
        progress: told after each prompt how many are done.
        cache: folder for prefilled prompts, or None.

    Returns:
        float64 [N, N] for each weighting.
    """
    half = max(16, settings.context // 2)
    prompts = needle_prompts(settings.prompts, tokens=(half, settings.context), seed=settings.seed, kind="calibration")
    sums: dict[Weighting, torch.Tensor] = {}
    for done, prompt in enumerate(prompts, start=1):
        gains = measure_gains(
            loaded,
            prefilled(loaded, loaded.chat(prompt.text), cache),
            [*loaded.answer(prompt.needle), *sorted(loaded.stop)[:1]],
            budget=settings.budget,
            sinks=settings.sinks,
            recent=settings.recent,
            weightings=weightings,
        )
        for kind, gain in gains.items():
            needed = gain.diagonal().sum().clamp(min=1e-30)
            sums[kind] = sums.get(kind, torch.zeros_like(gain)) + gain / needed / settings.prompts
        progress(done)
    return sums


def calibrate(
    loaded: LoadedModel,
    settings: Settings,
    *,
    name: str,
    command: str,
    progress: Callable[[int], None] = lambda done: None,
    cache: Path | None = None,
) -> HeadPlan:
    """Measure what every head's set is worth to every later head; choose retrieval heads and sources by greedy cover.

    The same model, settings and versions give the same roles and sources.

    Args:
        loaded: the model.
        settings: what is asked for.
        name: the plan's name.
        command: how this was called, for the plan's provenance.
        progress: told after each prompt how many are done.
        cache: folder for prefilled prompts, or None.

    Raises:
        ValueError: a setting is out of range.
    """
    settings.check(loaded.shape, getattr(loaded.model.config, "max_position_embeddings", None))
    kind = settings.weighting
    gain = measured_gains(loaded, settings, weightings=(kind,), progress=progress, cache=cache)[kind]
    cover = greedy_cover(
        gain,
        layers=loaded.shape.num_hidden_layers,
        heads=loaded.shape.num_key_value_heads,
        retrieval=settings.retrieval,
        ranks=min(settings.tp, loaded.shape.num_key_value_heads),
    )
    return HeadPlan(
        name=name,
        model=loaded.shape,
        roles=cover.roles,
        sources=cover.sources,
        defaults=PlanDefaults(budget=settings.budget, sinks=settings.sinks, recent=settings.recent),
        provenance={
            "method": f"greedy cover, weighted by {kind}",
            "data": f"{settings.prompts} needle questions, {settings.context // 2} to {settings.context} tokens of "
            "Python's pydoc_data.topics (PSF licence), answers teacher-forced",
            "seed": settings.seed,
            "date": datetime.now(UTC).date().isoformat(),
            "command": command,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__.partition("+")[0],
                "transformers": transformers.__version__,
            },
            "scores": {"covered": round(cover.covered, 4)},
        },
    )
