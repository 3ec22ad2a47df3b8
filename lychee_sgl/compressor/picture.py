"""Curves of trainings and reinforcements, drawn from their records: needs matplotlib and nothing of torch."""

from __future__ import annotations

import json
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lychee_sgl.heads.checks import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_ARMS = {True: ("gated", "C0"), False: ("direct", "C3")}


def save_png(
    records: Sequence[Path],
    png: Path,
    *,
    table: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Draw one training, or some reinforcements in one picture.

    Args:
        records: one `training.json`, or one or more `reinforcement.json`.
        png: the picture.
        table: where what reinforcements changed goes, as JSON.
        say: told what each of them changed.

    Raises:
        ValueError: a record is none of these, or they are of both kinds.
        ModuleNotFoundError: matplotlib is not installed (the extra `train` brings it).
        OSError: a file cannot be read or written.
    """
    told = [_read(record) for record in records]
    trainings = [one for one in told if one["schema"] == "lychee-sgl/compressor-training"]
    if len(trainings) == len(told) == 1:
        _draw_training(told[0], png)
    elif trainings or not told:
        raise ValueError(f"{len(told)} records; allowed: one of a training, or one or more of reinforcements")
    else:
        rows = [_row(one) for one in told]
        for row in rows:
            say(_line(row))
        if table is not None:
            write_text(table, json.dumps(rows, indent=1, allow_nan=False) + "\n")
        _draw_reinforcements(told, png)


def _read(record: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        kind = told["schema"]
        needed = {
            "lychee-sgl/compressor-training": ("tasks", "history"),
            "lychee-sgl/compressor-reinforcement": ("columns", "history", "settings", "before", "after", "levels"),
        }[kind]
        if not all(name in told for name in needed):
            raise ValueError(kind)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record} is not the record of a compressor's training or reinforcement") from error
    return told


def _draw_training(told: dict[str, Any], png: Path) -> None:
    """The loss of each task at each ratio over the steps, smoothed."""
    tasks, history = told["tasks"], told["history"]
    figure, plots = _figure(len(tasks))
    for number, (axes, task) in enumerate(zip(plots, tasks, strict=True)):
        for ratio in sorted({int(row[0]) for row in history}):
            steps = [step for step, row in enumerate(history) if int(row[0]) == ratio]
            losses = _smooth([history[step][2 + number] for step in steps])
            axes.plot(steps, losses, label=f"ratio {ratio}", linewidth=1)
        axes.set(title=f"{task}: nats a token", xlabel="step", ylim=(0, None))
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(png, format="png", dpi=110)


def _draw_reinforcements(told: Sequence[dict[str, Any]], png: Path) -> None:
    """Rewards over the steps, smoothed, a line for each run, and the outcome before and after."""
    names = ("outcome", "total", "evidence", "tokens_said")
    figure, plots = _figure(len(names) + 1)
    for axes, name in zip(plots, names, strict=False):
        seen = set()
        for one in told:
            arm, color = _ARMS[one["settings"]["gated"]]
            values = _smooth([row[one["columns"].index(name)] for row in one["history"]])
            axes.plot(values, color=color, linewidth=1, alpha=0.8, label=None if arm in seen else arm)
            seen.add(arm)
        axes.set(title=f"{name.replace('_', ' ')}, mean of a step", xlabel="step")
        axes.legend(fontsize=7, frameon=False)
    axes = plots[-1]
    for number, one in enumerate(told):
        arm, color = _ARMS[one["settings"]["gated"]]
        for shift, when in ((-0.12, "before"), (0.12, "after")):
            for share, low, high, _ in _all(one[when]):
                bar = ([share - low], [high - share])
                axes.errorbar(
                    number + shift, share, yerr=bar, color="0.5" if when == "before" else color, fmt="o", ms=3
                )
    labels = [f"{_ARMS[one['settings']['gated']][0]}\nseed {one['settings']['seed']}" for one in told]
    axes.set_xticks(range(len(told)), labels, fontsize=6)
    axes.set(title="held out: right before (grey), after", ylim=(0, None))
    figure.savefig(png, format="png", dpi=110)


def _row(one: dict[str, Any]) -> dict[str, Any]:
    """What one reinforcement changed."""
    settings = one["settings"]
    kept = {name: settings[name] for name in ("seed", "gated", "loop", "gate", "evidence", "form", "rate", "ratios")}
    last = one["history"][-max(1, len(one["history"]) // 10) :]
    ends = (
        {name: round(fmean(row[place] for row in last), 4) for place, name in enumerate(one["columns"])} if last else {}
    )
    names = ("complete", "steps_done", "device", "seconds", "before", "after", "changed")
    return {**kept, **{name: one.get(name) for name in names}, "last_tenth": ends}


def _line(row: dict[str, Any]) -> str:
    arm = _ARMS[row["gated"]][0]
    if row["after"] is None:
        return f"{arm}, seed {row['seed']}: {row['steps_done']} steps, not complete"
    parts = []
    for ratio, now in row["after"].items():
        was = row["before"][ratio]
        begun, ended = (f"{one[0]:.1%} ({one[1]:.1%} to {one[2]:.1%})" for one in (was["all"], now["all"]))
        parts.append(f"ratio {ratio}: {begun} before, {ended} after, of {now['all'][3]}")
    return f"{arm}, seed {row['seed']}, {row['steps_done']} steps: {'; '.join(parts)}"


def _all(shares: dict[str, Any] | None) -> list[list[float]]:
    return [] if shares is None else [at["all"] for at in shares.values()]


def _figure(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * count, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _smooth(values: list[float], weight: float = 0.95) -> list[float]:
    """An exponential mean that begins unbiased."""
    smooth, total, parts = [], 0.0, 0.0
    for value in values:
        total, parts = weight * total + value, weight * parts + 1.0
        smooth.append(total / parts)
    return smooth
