"""From trained gates to a head plan and a record of the training."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
import transformers

from lychee_sgl.heads.checks import write_text
from lychee_sgl.heads.plan import HeadPlan, PlanDefaults
from lychee_sgl.heads.train.gates import exact_top

if TYPE_CHECKING:
    from pathlib import Path

    from lychee_sgl.heads.train.trainer import Trainer

NAMES = {"hardkuma": "HardKuma", "hardconcrete": "HardConcrete", "l1": "L1"}


def decided(mean: torch.Tensor, margin: float = 0.1) -> float:
    """Share of the gates behind layer 0 whose mean is within `margin` of 0 or 1."""
    behind = mean[1:]
    return float(((behind < margin) | (behind > 1.0 - margin)).float().mean())


def export_plan(trainer: Trainer, *, name: str, command: str) -> HeadPlan:
    """The plan with exactly as many retrieval heads as were asked for: those with the largest gates.

    Args:
        trainer: a finished training.
        name: the plan's name.
        command: how it was called, for the plan's provenance.
    """
    settings, shape = trainer.settings, trainer.loaded.shape
    mean = trainer.gates.mean()
    retrieval = exact_top(mean, settings.retrieval)
    last = trainer.history.loss[-50:]
    return HeadPlan(
        name=name,
        model=shape,
        roles=tuple("".join("R" if flag else "S" for flag in row) for row in retrieval.tolist()),
        sources=trainer.sources.export(retrieval),
        defaults=PlanDefaults(budget=settings.budget, sinks=settings.sinks, recent=settings.recent),
        provenance={
            "method": f"{NAMES[settings.gate]}, {settings.sources} sources, {settings.chain} chain, "
            f"{settings.objective} distillation",
            "data": trainer.data.origin,
            "seed": settings.seed,
            "date": datetime.now(UTC).date().isoformat(),
            "command": command,
            "device": device_name(trainer.loaded.device),
            "seconds": round(sum(trainer.history.seconds), 1),
            "versions": versions(),
            "scores": {
                "loss": round(sum(last) / len(last), 4),
                "expected_count": round(float(trainer.gates.expected_count().detach()), 2),
                "decided": round(decided(mean), 4),
                "least_chosen": round(float(mean[1:][retrieval[1:]].min()), 4),
                "largest_left": round(float(mean[1:][~retrieval[1:]].max()), 4),
            },
        },
    )


def save_record(trainer: Trainer, path: Path, command: str) -> None:
    """Write the course of a training as JSON, from which it can be drawn anywhere."""
    record: dict[str, Any] = {
        "what": "training of head gates",
        "command": command,
        "model": trainer.loaded.shape.name,
        "device": device_name(trainer.loaded.device),
        "dtype": str(trainer.loaded.model.dtype).removeprefix("torch."),
        "versions": versions(),
        "data": trainer.data.origin,
        "settings": trainer.settings.as_dict(),
        "unit": trainer.unit,
        "history": trainer.history.as_dict(),
    }
    write_text(path, json.dumps(record, allow_nan=False) + "\n")


def device_name(device: torch.device) -> str:
    """`cpu`, or what the GPU calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def versions() -> dict[str, str]:
    """Versions that numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
    }
