"""A training from a model folder to a compressor's folder, and its evaluation: what the command line calls."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AutoTokenizer

from lychee_sgl.compressor.corpus import held_out_text, training_text
from lychee_sgl.compressor.course import TrainingError, is_complete, planned
from lychee_sgl.compressor.data import Samples
from lychee_sgl.compressor.evaluate import evaluate, held_out_samples
from lychee_sgl.compressor.folder import READER
from lychee_sgl.compressor.model import Compressor, load_base, load_compressor, shape_of
from lychee_sgl.compressor.settings import TASKS, TrainSettings
from lychee_sgl.compressor.trainer import Trainer
from lychee_sgl.heads.checks import write_text
from lychee_sgl.heads.train.export import device_name
from lychee_sgl.heads.train.run import chosen_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lychee_sgl.compressor.trainer import StepReport

STATE: Final = "training.checkpoint"
RECORD: Final = "training.json"
EVALUATION: Final = "evaluation.json"
TRAINING_SCHEMA: Final = "lychee-sgl/compressor-training"
EVALUATION_SCHEMA: Final = "lychee-sgl/compressor-evaluation"

_FITS: Final = 0.92  # share of the minutes that steps are planned for: saving and slower steps take the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training.

    Attributes:
        model: folder of the model.
        out: folder of the compressor; its state lies in it until the training is complete.
        settings: with as many steps as there are to be.
        fit: choose the steps so that the training takes `minutes`, by the time that a few take here.
        sweep: learning rates of a pilot, of which it takes the best; none: that of the settings.
        pilot: steps for each of them.
        minutes: stop after so long, the state saved; None: no limit.
        ratios: of the compressor.
        window: of the compressor.
        rank: of its adapter.
        reader_rank: of an adapter of the reader's own, trained with it; 0: the reader stays the model as it is.
        text: files and folders to train on, in addition.
        packages: whose docstrings are read; None: the usual ones.
        device: a torch device; None: a GPU if there is one.
        resume: go on from the state that is there.
        command: how this was called.
    """

    model: Path
    out: Path
    settings: TrainSettings
    fit: bool = False
    sweep: tuple[float, ...] = ()
    pilot: int = 80
    minutes: float | None = None
    ratios: tuple[int, ...] = (2, 4, 8, 16)
    window: int = 512
    rank: int = 32
    reader_rank: int = 0
    text: tuple[Path, ...] = ()
    packages: tuple[str, ...] | None = None
    device: str | None = None
    resume: bool = False
    command: str = ""


def train(
    job: Job, *, say: Callable[[str], None], tell: Callable[[StepReport, int], None] = lambda report, steps: None
) -> bool:
    """Train, and write the compressor with its record; unfinished ones too, beside their state.

    Args:
        job: what to do.
        say: told what is being prepared.
        tell: told about each step, and how many there are.

    Returns:
        Whether the training is complete.

    Raises:
        ValueError: something that was asked for does not do, or there is a state and `resume` is not asked for.
        TrainingError: the loss is no number.
        OSError: a file cannot be read or written.
    """
    started = time.monotonic()
    state = job.out / STATE
    if state.exists() and not job.resume:
        raise ValueError(f"{state} holds an unfinished training; go on with --resume, or remove it")
    if job.fit and job.minutes is None:
        raise ValueError("steps are to fit, without minutes to fit into; allowed: a number of minutes, or of steps")
    if job.resume and not state.exists() and is_complete(job.out / RECORD):
        say(f"{job.out} is complete; without --resume it begins anew")
        return True
    job.out.mkdir(parents=True, exist_ok=True)
    device = chosen_device(job.device)
    base = base_on(job.model, device)
    shape = shape_of(base, ratios=job.ratios, window=job.window, rank=job.rank)
    compressor = Compressor(base, shape, seed=job.settings.seed).to(device)
    if job.reader_rank:
        compressor.add_reader(job.reader_rank, seed=job.settings.seed)
    text = training_text(job.text) if job.packages is None else training_text(job.text, job.packages)
    samples = Samples(tokenizer_of(job.model), text.paragraphs, window=job.window, settings=job.settings)
    say(f"{len(samples.tokens):,} tokens of text, {sum(v.numel() for v in compressor.trained().values()):,} weights")
    identity = {
        "model": job.model.resolve().name, "weights": compressor.base.weights, "text": text.digest,
        "dtype": str(base.dtype), "reader_rank": job.reader_rank,
    }  # fmt: skip
    until = None if job.minutes is None else started + 60 * job.minutes
    settings, tried = _settings(job, compressor, samples, identity, until, say)
    trainer = Trainer(compressor, samples, settings, identity)
    if state.exists():
        trainer.resume(state)
        say(f"going on at step {trainer.step} of {settings.steps}")
    trainer.extra = trainer.extra or {"pilot": tried}
    done = trainer.run(state=state, until=until, tell=lambda report: tell(report, settings.steps))
    compressor.save(job.out)
    record = {
        "schema": TRAINING_SCHEMA, "version": 1, "date": time.strftime("%Y-%m-%d"), "command": job.command,
        "complete": done, "steps_done": trainer.step, "settings": settings.as_dict(), "device": device_name(device),
        "pilot": trainer.extra["pilot"], "identity": identity, "text": text.origin,
        "text_tokens": len(samples.tokens), "tasks": list(TASKS),
        "columns": ["ratio", "seconds", *TASKS, "drift"],
        "seconds": round(sum(row[1] for row in trainer.history), 1), "history": trainer.history,
    }  # fmt: skip
    write_text(job.out / RECORD, json.dumps(record, allow_nan=False) + "\n")
    if done:
        state.unlink(missing_ok=True)
    return done


def _settings(
    job: Job,
    compressor: Compressor,
    samples: Samples,
    identity: dict[str, Any],
    until: float | None,
    say: Callable[[str], None],
) -> tuple[TrainSettings, dict[str, float]]:
    """With the rate that a pilot finds and the steps that fit, and what the pilot found; a state keeps its own."""
    state, settings = job.out / STATE, job.settings
    found: dict[str, float] = {}
    if state.exists():
        if job.sweep:
            settings = replace(settings, rate=planned(state, "rate"))
        return (replace(settings, steps=planned(state, "steps")) if job.fit else settings), found
    if job.sweep:
        rate, found = pilot(compressor, samples, settings, job.sweep, job.pilot, say)
        settings = replace(settings, rate=rate)
    if job.fit:
        assert until is not None
        pace = Trainer(compressor, samples, settings, identity).pace()
        steps = max(1, int((until - time.monotonic()) * _FITS / pace))
        say(f"{pace:.3f} s a step: {steps} steps fit into {job.minutes:g} minutes")
        settings = replace(settings, steps=steps)
    return settings, found


def pilot(
    compressor: Compressor,
    samples: Samples,
    settings: TrainSettings,
    rates: Sequence[float],
    steps: int,
    say: Callable[[str], None],
) -> tuple[float, dict[str, float]]:
    """Try learning rates, each from the same start, on the first steps and with a schedule of its own.

    Args:
        compressor: ends as it was.
        samples: to train on; those that no training draws decide.
        settings: of the training.
        rates: to try.
        steps: for each.
        say: told each result.

    Returns:
        The best rate, the lower one of two within 1%, and the loss of each.

    Raises:
        ValueError: every one of them ended in numbers that are not finite.
    """
    found: dict[str, float] = {}
    begun = Trainer(compressor, samples, settings, {})
    start = begun.weights()
    best: tuple[float, float] | None = None
    for rate in sorted({*rates}):
        trainer = Trainer(compressor, samples, replace(settings, rate=rate, steps=steps), {})
        try:
            trainer.run()
            loss = trainer.held_out_loss()
        except TrainingError as error:
            say(f"rate {rate:g}: {error}")
            loss = math.inf
        finally:
            begun.put(start)
        if math.isfinite(loss):
            found[f"{rate:g}"] = round(loss, 4)
            say(f"rate {rate:g}: loss {loss:.4f} after {steps} steps")
            if best is None or loss < 0.99 * best[1]:
                best = (rate, loss)
    if best is None:
        raise ValueError(
            f"sweep is {', '.join(f'{rate:g}' for rate in rates)}; allowed: a rate that keeps the loss finite"
        )
    return best[0], found


def measure(
    model: Path,
    folder: Path,
    *,
    windows: int,
    questions: int,
    seed: int = 0,
    device: str | None = None,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
    text: Sequence[str] | None = None,
    reader: bool = False,
) -> dict[str, Any]:
    """Evaluate a compressor and write the record into its folder.

    Args:
        model: folder of the model.
        folder: of the compressor.
        windows: to reconstruct.
        questions: to answer.
        seed: of both.
        device: a torch device; None: a GPU if there is one.
        command: how this was called.
        say: told each result.
        text: paragraphs to take windows from; None: the held-out half of Python's documentation.
        reader: read with the reader's adapter in the folder; else with the model as it is.

    Raises:
        ValueError: something that was asked for does not do.
        OSError: a file cannot be read or written.
    """
    started, where = time.monotonic(), chosen_device(device)
    base = base_on(model, where)
    compressor = load_compressor(folder, base)
    if reader:
        compressor.add_reader(adapter=folder / READER)
    compressor.eval()
    paragraphs = held_out_text().paragraphs if text is None else text
    settings = TrainSettings(seed=seed)
    repeat, answer = held_out_samples(
        tokenizer_of(model), paragraphs, settings, window=compressor.shape.window, windows=windows, questions=questions
    )
    record = {
        "schema": EVALUATION_SCHEMA, "version": 1, "date": time.strftime("%Y-%m-%d"), "command": command,
        "model": model.resolve().name, "device": device_name(where), "windows": windows, "questions": questions,
        "seed": seed, "window": compressor.shape.window,
        "reader": "adapter" if reader else "model", **evaluate(compressor, repeat, answer, tell=say),
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    write_text(folder / EVALUATION, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return record


def base_on(model: Path, device: torch.device) -> Any:
    """The frozen model where it is to run: bfloat16 on a GPU, float32 on a CPU.

    Raises:
        ValueError: the folder holds none.
    """
    return load_base(model, device=str(device), dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)


def tokenizer_of(model: Path) -> Any:
    """The model's tokeniser.

    Raises:
        ValueError: the folder holds none.
    """
    try:
        return AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"model is {model}; allowed: a folder with a tokeniser ({error})") from error
