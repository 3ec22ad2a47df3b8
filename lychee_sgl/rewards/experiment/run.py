"""The sweep from its settings to its record: resumable, with what the best policy would do beside what was learnt."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from lychee_sgl.heads.checks import write_text
from lychee_sgl.heads.train.checkpoint import load_checkpoint, save_checkpoint
from lychee_sgl.rewards.experiment.learn import MEASURED, Learners
from lychee_sgl.rewards.experiment.optimum import optimum
from lychee_sgl.rewards.experiment.settings import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lychee_sgl.rewards.experiment.settings import Settings

POINTS = 50
"""Points of a curve in the record."""

END = 0.05
"""Share of the updates that the end, and a window of the course, is a mean over."""

COLLAPSED = 0.5
"""A run has collapsed when its outcome ended below this share of its best window."""


def train(
    settings: Settings,
    *,
    state: Path | None = None,
    resume: bool = False,
    every: int = 50,
    tell: Callable[[int], None] = lambda done: None,
    until: int | None = None,
) -> torch.Tensor:
    """Train all arms with all seeds.

    Args:
        settings: of the sweep.
        state: where the state goes between updates, or None; removed at the end.
        resume: go on from it, if it is there.
        every: updates between two states.
        tell: told after each update how many are done.
        until: stop before this update, the state saved.

    Returns:
        What `MEASURED` names, float32 [updates, arms, seeds, 5].

    Raises:
        ValueError: there is a state and `resume` is not asked for, or it is another sweep's.
    """
    arms = settings.arms()
    learners = Learners(settings, arms)
    identity = json.loads(json.dumps(settings.as_dict()))
    history: list[torch.Tensor] = []
    if state is not None and state.exists():
        if not resume:
            raise ValueError(f"{state} holds an unfinished sweep; go on with --resume, or remove it")
        kept = load_checkpoint(state, identity)
        learners.load(kept["learners"])
        history = list(kept["history"])
    last = settings.updates if until is None else min(until, settings.updates)
    while learners.done < last:
        history.append(learners.update())
        if state is not None and (learners.done % every == 0 or learners.done == last < settings.updates):
            save_checkpoint(
                state, {"identity": identity, "learners": learners.state(), "history": torch.stack(history)}
            )
        tell(learners.done)
    if state is not None and last == settings.updates:
        state.unlink(missing_ok=True)
    return torch.stack(history).unflatten(1, (len(arms), settings.seeds))


def report(settings: Settings, history: torch.Tensor, *, command: str, seconds: float) -> dict[str, Any]:
    """What a sweep showed.

    Args:
        settings: of the sweep.
        history: from `train`.
        command: how it was called.
        seconds: it took.
    """
    rows = []
    for number, arm in enumerate(settings.arms()):
        best = asdict(optimum(arm, settings.places, settings.longest))
        rows.append({
            "farm": arm.farm, "gate": arm.gate, "shortest": arm.shortest, "warm": arm.warm,
            "optimum": {name: round(value, 4) for name, value in best.items()},
            **_runs(history[:, number]),
        })  # fmt: skip
    return {
        "schema": SCHEMA, "version": 1, "date": time.strftime("%Y-%m-%d"), "command": command,
        "seconds": round(seconds), "settings": json.loads(json.dumps(settings.as_dict())), "collapsed_below": COLLAPSED,
        "end": END, "arms": rows,
    }  # fmt: skip


def _runs(course: torch.Tensor) -> dict[str, Any]:
    """One arm's runs. course: [updates, seeds, 5]."""
    window = max(1, round(END * course.shape[0]))
    windows = course.unfold(0, window, 1).mean(-1)
    end, best = windows[-1], windows[..., MEASURED.index("outcome")].max(0).values
    outcome = end[:, MEASURED.index("outcome")]
    points = torch.linspace(0, windows.shape[0] - 1, min(POINTS, windows.shape[0])).long()
    curves = {
        name: [[round(v, 3) for v in line] for line in windows[points, :, MEASURED.index(name)].T.tolist()]
        for name in ("outcome", "total")
    }
    return {
        "end": {name: [round(v, 4) for v in end[:, i].tolist()] for i, name in enumerate(MEASURED)},
        "best_outcome": [round(v, 4) for v in best.tolist()],
        "collapsed": int((outcome < COLLAPSED * best).sum()),
        "updates": [int(p) + window for p in points],
        "curves": curves,
    }


def experiment(
    settings: Settings, out: Path, *, command: str, resume: bool, tell: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """Run a sweep and write its record.

    Args:
        settings: of the sweep.
        out: the record; the state lies beside it while the sweep runs.
        command: how it was called.
        resume: go on from the state, if there is one.
        tell: told after each update how many are done.

    Raises:
        ValueError: as `train`.
        OSError: a file cannot be written.
    """
    started = time.monotonic()
    history = train(settings, state=out.with_suffix(".checkpoint"), resume=resume, tell=tell)
    record = report(settings, history, command=command, seconds=time.monotonic() - started)
    write_text(out, json.dumps(record, allow_nan=False) + "\n")
    return record
