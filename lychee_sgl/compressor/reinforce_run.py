"""A reinforcement from a compressor's folder to another's, judged before and after: what the command line calls."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.compressor.corpus import PACKAGES, held_out_text, training_text
from lychee_sgl.compressor.course import is_complete
from lychee_sgl.compressor.data import Samples
from lychee_sgl.compressor.documents import Documents
from lychee_sgl.compressor.facts import HELD_OUT
from lychee_sgl.compressor.folder import READER
from lychee_sgl.compressor.model import load_compressor
from lychee_sgl.compressor.reinforce import COLUMNS, Reinforcer
from lychee_sgl.compressor.run import base_on, tokenizer_of
from lychee_sgl.compressor.settings import ReinforceSettings, TrainSettings
from lychee_sgl.heads.checks import write_text
from lychee_sgl.heads.evaluate.scores import wilson
from lychee_sgl.heads.train.export import device_name
from lychee_sgl.heads.train.run import chosen_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lychee_sgl.compressor.documents import Task
    from lychee_sgl.compressor.model import Compressor
    from lychee_sgl.compressor.play import Player
    from lychee_sgl.compressor.reinforce import PlayReport
    from lychee_sgl.heads.haystack import Haystack

STATE: Final = "reinforcement.checkpoint"
RECORD: Final = "reinforcement.json"
SCHEMA: Final = "lychee-sgl/compressor-reinforcement"

UNBOUNDED: Final = 1_000_000_000
"""Steps of a training that goes on until its minutes are over."""

_RESERVE: Final = 1.3  # of the time that judging took: kept for judging once more, and for writing
_EVERY: Final = 50
_TOGETHER: Final = 32  # documents that are evaluated together

Hits = dict[str, list[bool]]
"""For each ratio, which of the held-out questions were answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceJob:
    """One reinforcement.

    Attributes:
        model: folder of the model.
        compressor: folder of a trained compressor; if it has a reader's adapter, this goes on, too.
        out: folder of the result; its state lies in it until the training is complete.
        settings: how, but for the number of steps.
        steps: None: as many as `minutes` have room for.
        minutes: stop after so long; with `steps`, the state is saved and goes on; None: no limit.
        questions: on which the outcome is judged before and after.
        text: files and folders to take documents from, in addition.
        packages: whose docstrings are read.
        device: a torch device; None: a GPU if there is one.
        resume: go on from the state that is there.
        command: how this was called.
    """

    model: Path
    compressor: Path
    out: Path
    settings: ReinforceSettings
    steps: int | None = None
    minutes: float | None = None
    questions: int = 300
    text: tuple[Path, ...] = ()
    packages: tuple[str, ...] = PACKAGES
    device: str | None = None
    resume: bool = False
    command: str = ""


def reinforce(
    job: ReinforceJob,
    *,
    say: Callable[[str], None],
    tell: Callable[[PlayReport, int], None] = lambda report, steps: None,
) -> bool:
    """Reinforce, and write the result with its record; an unfinished one too, beside its state.

    Args:
        job: what to do.
        say: told what is being prepared, and the outcome before and after.
        tell: told about each step, and how many there are.

    Returns:
        Whether the training is complete and was judged.

    Raises:
        ValueError: something that was asked for does not do, or there is a state and `resume` is not asked for.
        TrainingError: something is no number.
        OSError: a file cannot be read or written.
    """
    began, state = time.monotonic(), job.out / STATE
    _check(job, state)
    if job.resume and not state.exists() and is_complete(job.out / RECORD):
        say(f"{job.out} is complete; without --resume it begins anew")
        return True
    job.out.mkdir(parents=True, exist_ok=True)
    until = None if job.minutes is None else began + 60 * job.minutes
    compressor, start = _start(job)
    samples, held_out, text = _texts(job, compressor)
    say(f"{len(samples.tokens):,} tokens of text, {sum(v.numel() for v in compressor.trained().values()):,} weights")
    identity = {
        "model": job.model.resolve().name, "weights": compressor.base.weights, "start": start,
        "text": text.digest, "questions": job.questions, "dtype": str(next(compressor.model.parameters()).dtype),
    }  # fmt: skip
    settings = replace(job.settings, steps=UNBOUNDED if job.steps is None else job.steps)
    one = Reinforcer(compressor, Documents(samples, settings), settings, identity)
    if state.exists():
        one.resume(state)
        say(f"going on at step {one.step}")
    tasks = Documents(held_out, settings).some(f"lychee-sgl reinforce held out {settings.seed}", job.questions)
    if "before" not in one.extra:
        at = time.monotonic()
        hits = judge(one.player, tasks, settings.ratios, say=lambda line: say(f"before: {line}"))
        one.extra = {"before": hits, "seconds": time.monotonic() - at}
        if not any(hit for right in hits.values() for hit in right):
            say("none is answered yet: only what chance finds can teach; a lower ratio or a better compressor helps")
        one.save(state)
    stop = None if until is None else until - _RESERVE * one.extra["seconds"]
    done = one.run(state=state, every=_EVERY, until=stop, tell=lambda report: tell(report, _expected(one, stop)))
    done = done or job.steps is None  # its time was all there was
    after = judge(one.player, tasks, settings.ratios, say=lambda line: say(f"after: {line}")) if done else None
    compressor.save(job.out)
    record = {
        "schema": SCHEMA, "version": 1, "date": time.strftime("%Y-%m-%d"), "command": job.command, "complete": done,
        "steps_done": one.step, "settings": settings.as_dict(), "levels": [asdict(level) for level in one.chain.levels],
        "device": device_name(compressor.device), "identity": identity, "text": text.origin,
        **_outcome(tasks, one.extra["before"], after),
        "seconds": round(sum(row[COLUMNS.index("seconds")] for row in one.history), 1),
        "columns": list(COLUMNS), "history": one.history,
    }  # fmt: skip
    write_text(job.out / RECORD, json.dumps(record, allow_nan=False) + "\n")
    if done:
        state.unlink(missing_ok=True)
    return done


def judge(
    player: Player, tasks: Sequence[Task], ratios: Sequence[int], *, say: Callable[[str], None] = lambda line: None
) -> Hits:
    """Which tasks the policy answers, greedily.

    Args:
        player: with the policy.
        tasks: one or more.
        ratios: at which to ask.
        say: told each result.
    """
    hits: Hits = {}
    for ratio in ratios:
        right: list[bool] = []
        for first in range(0, len(tasks), _TOGETHER):
            right += [group[0].right for group in player.play(tasks[first : first + _TOGETHER], ratio)]
        hits[str(ratio)] = right
        low, high = wilson(sum(right), len(right))
        say(f"{sum(right)} of {len(right)} at ratio {ratio} ({low:.1%} to {high:.1%})")
    return hits


def _check(job: ReinforceJob, state: Path) -> None:
    if state.exists() and not job.resume:
        raise ValueError(f"{state} holds an unfinished training; go on with --resume, or remove it")
    if job.steps is None and job.minutes is None:
        raise ValueError("neither steps nor minutes are given; allowed: one of them, or both")
    if job.questions < 1:
        raise ValueError(f"questions is {job.questions}; allowed: 1 or more")
    if job.out.resolve() == job.compressor.resolve():
        raise ValueError(f"out is {job.out}, where it starts from; allowed: another folder")


def _start(job: ReinforceJob) -> tuple[Compressor, str]:
    """The policy that a training begins with, and what its files are told by."""
    compressor = load_compressor(job.compressor, base_on(job.model, chosen_device(job.device)))
    files = [job.compressor / name for name in ("adapter_model.safetensors", "compressor.safetensors")]
    reader = job.compressor / READER
    if reader.is_dir():
        if not job.settings.reader_rank:
            raise ValueError(f"{reader} has an adapter and reader_rank is 0; allowed: 1 or more, to go on with it")
        compressor.add_reader(adapter=reader)
        files.append(reader / "adapter_model.safetensors")
    elif job.settings.reader_rank:
        compressor.add_reader(job.settings.reader_rank, seed=job.settings.seed)
    digest = sha256()
    for file in files:
        digest.update(file.read_bytes())
    return compressor.eval(), digest.hexdigest()[:16]


def _texts(job: ReinforceJob, compressor: Compressor) -> tuple[Samples, Samples, Haystack]:
    """What is trained on, what it is judged by, and the text of the former."""
    tokenizer, window, text = tokenizer_of(job.model), compressor.shape.window, training_text(job.text, job.packages)
    settings = TrainSettings()
    samples = Samples(tokenizer, text.paragraphs, window=window, settings=settings)
    held_out = Samples(tokenizer, held_out_text().paragraphs, window=window, settings=settings, facts=HELD_OUT)
    return samples, held_out, text


def _expected(one: Reinforcer, stop: float | None) -> int:
    """How many steps it comes to: those that are to be, or that fit at the present pace."""
    if one.settings.steps < UNBOUNDED or stop is None:
        return one.settings.steps
    last = [row[COLUMNS.index("seconds")] for row in one.history[-20:]]
    return one.step + max(0, round((stop - time.monotonic()) * len(last) / max(sum(last), 1e-9)))


def _outcome(tasks: Sequence[Task], before: Hits, after: Hits | None) -> dict[str, Any]:
    """Shares of right answers with their 95% intervals, and which questions changed sides."""
    told: dict[str, Any] = {"before": _shares(tasks, before), "after": None, "changed": None}
    if after is not None:
        told["after"] = _shares(tasks, after)
        told["changed"] = {
            ratio: {
                "gained": sum(now and not was for was, now in zip(before[ratio], right, strict=True)),
                "lost": sum(was and not now for was, now in zip(before[ratio], right, strict=True)),
            }
            for ratio, right in after.items()
        }
    return told


def _shares(tasks: Sequence[Task], hits: Hits) -> dict[str, dict[str, list[float]]]:
    told: dict[str, dict[str, list[float]]] = {}
    for ratio, right in hits.items():
        told[ratio] = {}
        for name, hops in (("all", (1, 2)), ("one_hop", (1,)), ("two_hop", (2,))):
            some = [hit for task, hit in zip(tasks, right, strict=True) if task.hops in hops]
            if some:
                share = (sum(some) / len(some), *wilson(sum(some), len(some)))
                told[ratio][name] = [*(round(value, 4) for value in share), len(some)]
    return told
