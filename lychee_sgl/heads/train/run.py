"""One training from a model folder to a plan file: what `lychee-sgl heads train` and the ablation call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lychee_sgl.heads.gains import measure_gains
from lychee_sgl.heads.haystack import file_haystack, python_haystack
from lychee_sgl.heads.hybrid_hf import prefill
from lychee_sgl.heads.measure import load_model
from lychee_sgl.heads.train.data import Passkeys, read_questions
from lychee_sgl.heads.train.export import export_plan, save_record
from lychee_sgl.heads.train.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lychee_sgl.heads.gains import Weighting
    from lychee_sgl.heads.measure import LoadedModel
    from lychee_sgl.heads.plan import HeadPlan
    from lychee_sgl.heads.train.data import Data
    from lychee_sgl.heads.train.settings import TrainSettings
    from lychee_sgl.heads.train.trainer import StepReport

DType = Literal["float32", "bfloat16"]

FIRST_GAIN_SAMPLE = 1_000_000
"""Gains are measured on samples that no training reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What a training learns from.

    Attributes:
        source: `passkey`, or the path of a JSONL file.
        haystack: text file or folder for `passkey`; None: Python's documentation.
        context: shortest and longest document of `passkey`; a JSONL file's prompts may have up to the longest.
        needles: the most passkeys in a document.
        words: words of a passkey.
        seed: of the samples.
    """

    source: str = "passkey"
    haystack: Path | None = None
    context: tuple[int, int] = (1000, 6000)
    needles: int = 6
    words: int = 8
    seed: int = 0

    def open(self, loaded: LoadedModel) -> Data:
        """The samples for a model.

        Raises:
            ValueError: the file, the haystack or a number does not do.
            OSError: a file cannot be read.
        """
        from pathlib import Path

        window = getattr(loaded.model.config, "max_position_embeddings", None)
        if window is not None and self.context[1] + 512 > window:  # 512: question, chat template and answer
            raise ValueError(f"context is {self.context}; allowed: up to {window - 512} for {loaded.shape.name}")
        if self.source != "passkey":
            return read_questions(Path(self.source), loaded, longest=self.context[1] + 512, seed=self.seed)
        haystack = python_haystack("calibration") if self.haystack is None else file_haystack(self.haystack)
        return Passkeys(
            loaded=loaded, haystack=haystack, seed=self.seed, context=self.context, needles=self.needles,
            words=self.words,
        )  # fmt: skip


def chosen_device(device: str | None) -> torch.device:
    """The device that was asked for, else a GPU if there is one.

    Raises:
        ValueError: there is no such device.
    """
    try:
        return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; allowed: cpu, cuda, cuda:0, ...") from error


def load_for(
    path: Path, *, name: str | None = None, device: str | None = None, dtype: DType | None = None
) -> LoadedModel:
    """Load a model where it is to run.

    Args:
        path: the model folder.
        name: the model's name.
        device: a torch device; by default a GPU if there is one.
        dtype: by default bfloat16 on a GPU, float32 on the CPU.

    Raises:
        ValueError: it is not a model folder, or the dtype is another.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}; allowed: float32, bfloat16")
    where = chosen_device(device)
    kind = dtype or ("float32" if where.type == "cpu" else "bfloat16")
    return load_model(path, name=name, device=str(where), dtype=getattr(torch, kind))


def gains_on(
    loaded: LoadedModel,
    data: Data,
    *,
    samples: int,
    budget: int,
    sinks: int,
    recent: int,
    weightings: tuple[Weighting, ...] = ("effect",),
    tell: Callable[[int], None] = lambda done: None,
) -> dict[Weighting, torch.Tensor]:
    """Measured gains over samples of the training data, each sample's divided by all that its heads need.

    Args:
        loaded: the model, in float32: gains are differences of small numbers.
        data: where samples come from; those from `FIRST_GAIN_SAMPLE` on are used.
        samples: how many.
        budget: tokens in a set.
        sinks: first tokens always kept.
        recent: last tokens always kept.
        weightings: which worths to measure.
        tell: told after each sample how many are done.
    """
    sums: dict[Weighting, torch.Tensor] = {}
    for done in range(samples):
        sample = data.sample(FIRST_GAIN_SAMPLE + done)
        reply = [*sample.answer, *sorted(loaded.stop)[:1]]
        gains = measure_gains(
            loaded, prefill(loaded.model, sample.prompt), reply,
            budget=budget, sinks=sinks, recent=recent, weightings=weightings,
        )  # fmt: skip
        for kind, gain in gains.items():
            needed = gain.diagonal().sum().clamp(min=1e-30)
            sums[kind] = sums.get(kind, torch.zeros_like(gain)) + gain / needed / samples
        tell(done + 1)
    return sums


def train_plan(
    loaded: LoadedModel,
    data: Data,
    settings: TrainSettings,
    *,
    out: Path,
    name: str,
    command: str,
    gain: torch.Tensor | None,
    resume: bool,
    every: int = 25,
    tell: Callable[[StepReport], None] = lambda report: None,
) -> HeadPlan:
    """Train, and write the plan with its record; between two steps the state lies beside them.

    Args:
        loaded: the model.
        data: the samples.
        settings: of the training.
        out: the plan's file. `X.json` has its record in `X.training.json` and its state in `X.checkpoint`.
        name: the plan's name.
        command: how this was called.
        gain: measured gains, unless the sources are `same-index`.
        resume: go on from the state that is there, if one is.
        every: steps between two states.
        tell: told about each step.

    Raises:
        ValueError: a setting does not do, or there is a state and `resume` is not asked for, or it is another
            training's.
        TrainingError: the loss is no number.
    """
    state = out.with_suffix(".checkpoint")
    trainer = Trainer(loaded, data, settings, gain=gain)
    if state.exists():
        if not resume:
            raise ValueError(f"{state} holds an unfinished training; go on with --resume, or remove it")
        trainer.resume(state)
    trainer.run(checkpoint=state, every=every, tell=tell)
    plan = export_plan(trainer, name=name, command=command)
    save_record(trainer, out.with_suffix(".training.json"), command)
    plan.save(out)
    state.unlink(missing_ok=True)
    return plan


def measured_gain(loaded: LoadedModel, data: Data, settings: TrainSettings, *, samples: int, path: Path) -> None:
    """Measure the gains that a training's sources need, and keep them.

    Args:
        loaded: the model, in float32.
        data: the training's samples; gains are measured on other ones.
        settings: the training's budget, sinks and recent tokens.
        samples: how many.
        path: where they go.
    """
    gains = gains_on(
        loaded, data, samples=samples, budget=settings.budget, sinks=settings.sinks, recent=settings.recent
    )
    save_gain(gains["effect"], path)


def save_gain(gain: torch.Tensor, path: Path) -> None:
    """Keep gains; a reader sees all or nothing."""
    part = path.with_name(f"{path.name}.part")
    save_file({"gain": gain}, part)
    part.replace(path)


def load_gain(path: Path) -> torch.Tensor:
    """Gains that `measured_gain` kept, float64 [N, N].

    Raises:
        ValueError: it is no such file.
        OSError: it cannot be read.
    """
    try:
        return load_file(path)["gain"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"gain is {path}; allowed: a file that a training left as .gain.safetensors") from error
