"""Time and memory of a training step on a model's shape: weights are drawn, none are needed."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lychee_sgl.heads.measure import LoadedModel
from lychee_sgl.heads.shapes import read_shape
from lychee_sgl.heads.train.data import Sample
from lychee_sgl.heads.train.export import device_name, versions
from lychee_sgl.heads.train.run import chosen_device
from lychee_sgl.heads.train.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

    from lychee_sgl.heads.train.run import DType
    from lychee_sgl.heads.train.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSamples:
    """Prompts and answers of drawn tokens, all of one length.

    Attributes:
        prompt: tokens of a prompt.
        answer: tokens of an answer.
        vocabulary: tokens to draw from.
    """

    prompt: int
    answer: int
    vocabulary: int

    @property
    def origin(self) -> str:
        """What the samples are."""
        return f"drawn tokens, {self.prompt} and {self.answer}"

    def sample(self, index: int) -> Sample:
        """See `Data`."""
        draw = torch.Generator().manual_seed(index)
        tokens = torch.randint(self.vocabulary, (self.prompt + self.answer,), generator=draw).tolist()
        return Sample(prompt=tuple(tokens[: self.prompt]), answer=tuple(tokens[self.prompt :]))


def drawn_model(path: Path, *, device: str | None, dtype: DType) -> LoadedModel:
    """A model of a folder's shape with drawn weights, frozen; it has no tokeniser.

    Args:
        path: folder with a `config.json`.
        device: as `chosen_device` has it.
        dtype: of the weights.

    Raises:
        PlanError: there is no readable `config.json`.
    """
    shape = read_shape(path)
    where = chosen_device(device)
    with where:
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(path), dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    model.eval().requires_grad_(False)
    return LoadedModel(model=model, tokenizer=None, shape=shape, path=path)


def step_time(loaded: LoadedModel, settings: TrainSettings, samples: RandomSamples) -> dict[str, Any]:
    """Run all steps of the settings and tell what one takes.

    Args:
        loaded: the model.
        settings: the training; its first step is left out of the times.
        samples: what it is trained on.

    Returns:
        A JSON object: seconds of a step (median and quartiles), peak memory in bytes (null on a CPU), and what ran.

    Raises:
        ValueError: fewer than four steps: no quartiles without the first.
    """
    if settings.steps < 4:
        raise ValueError(f"steps is {settings.steps}; allowed: 4 or more")
    on_gpu = loaded.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(loaded.device)
    trainer = Trainer(loaded, samples, settings)
    trainer.run()
    seconds = trainer.history.seconds[1:]
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "what": "time and memory of a training step, drawn weights",
        "model": str(loaded.shape),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": device_name(loaded.device),
        "versions": versions(),
        "prompt": samples.prompt,
        "answer": samples.answer,
        "settings": asdict(settings),
        "steps": len(seconds),
        "seconds": {"low": round(low, 4), "median": round(middle, 4), "high": round(high, 4)},
        "peak_bytes": torch.cuda.max_memory_allocated(loaded.device) if on_gpu else None,
    }


def save_step_time(told: dict[str, Any], path: Path) -> None:
    """Write a measurement."""
    path.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
