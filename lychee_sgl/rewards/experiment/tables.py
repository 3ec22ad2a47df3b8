"""A sweep's record as lines of a table and as a picture. Standard library, and matplotlib for the picture."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lychee_sgl.rewards.experiment.settings import SCHEMA, Arm

COLOURS: Final = ("#b3452c", "#7fb3c8", "#2f6f8f", "#6a8f3c", "#8a6fb0", "#c9a13f")


def read_record(path: Path) -> dict[str, Any]:
    """A record of the experiment.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a record of the experiment: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a record of the experiment: schema is not {SCHEMA}")
    return record


def arm_of(row: dict[str, Any]) -> Arm:
    """The arm that a row of the record is about."""
    return Arm(farm=row["farm"], gate=row["gate"], shortest=row["shortest"], warm=row["warm"])


def world_name(record: dict[str, Any], row: dict[str, Any]) -> str:
    """A world in words."""
    longest = record["settings"]["longest"]
    limit = f"limit {longest}" if row["shortest"] == longest else f"limit {row['shortest']} to {longest}, not told"
    return f"{limit}, {'from scratch' if not row['warm'] else 'competent start'}"


def summary(record: dict[str, Any]) -> Iterator[str]:
    """A line for each world, size of the farmable reward and arm."""
    seeds = record["settings"]["seeds"]
    for row in record["arms"]:
        end, best = row["end"], row["optimum"]
        yield (
            f"{world_name(record, row)}; call worth {row['farm']:g}; {arm_of(row).name}: "
            f"outcome {_mean(end['outcome']):.2f} (best window {_mean(row['best_outcome']):.2f}), "
            f"submitted {_mean(end['submitted']):.2f}, passed {_mean(end['passed']):.2f}, "
            f"calls {_mean(end['calls']):.1f}, "
            f"collapsed {row['collapsed']} of {seeds}; the best policy submits {best['submitted']:.2f}"
        )


def markdown(record: dict[str, Any]) -> str:
    """A table of a sweep: a row for each world and size, a column an arm: outcome at the end, how many collapsed."""
    seeds = record["settings"]["seeds"]
    names = list(dict.fromkeys(arm_of(row).name for row in record["arms"]))
    lines = [
        f"| world | a call is worth | the best policy submits (direct) | {' | '.join(names)} |",
        "|---" * (3 + len(names)) + "|",
    ]
    cells: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in record["arms"]:
        cells.setdefault((world_name(record, row), row["farm"]), []).append(row)
    for (world, farm), rows in cells.items():
        found = [
            f"{_mean(row['end']['outcome']):.2f}" + (f", **{row['collapsed']} of {seeds}**" if row["collapsed"] else "")
            for row in rows
        ]
        lines.append(f"| {world} | {farm:g} | {rows[0]['optimum']['submitted']:.0%} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def save_png(record: dict[str, Any], png: Path, farm: float) -> None:
    """Draw the courses at one size of the farmable reward, and the ends at all.

    Args:
        record: of a sweep.
        png: the picture.
        farm: at which size courses are drawn.

    Raises:
        ValueError: the sweep has no such size.
        ModuleNotFoundError: matplotlib is not installed (the extra `train` brings it).
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    farms = record["settings"]["farms"]
    if farm not in farms:
        raise ValueError(f"farm is {farm}; allowed: {', '.join(f'{size:g}' for size in farms)}")
    worlds: dict[str, list[dict[str, Any]]] = {}
    for row in record["arms"]:
        worlds.setdefault(world_name(record, row), []).append(row)
    figure = Figure(figsize=(12, 3.1 * len(worlds)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(worlds), 3, squeeze=False)
    for axes, (name, rows) in zip(grid, worlds.items(), strict=True):
        for column, kind in enumerate(("outcome", "total")):
            _courses(axes[column], [row for row in rows if row["farm"] == farm], kind)
            axes[column].set_title(f"{name}: {kind}, a call worth {farm:g}", fontsize=8)
        _ends(axes[2], rows, farms)
        axes[2].set_title(f"{name}: outcome at the end", fontsize=8)
    grid[0][0].legend(fontsize=7, frameon=False)
    figure.savefig(png, format="png", dpi=110)


def _courses(axes: Any, rows: list[dict[str, Any]], kind: str) -> None:
    for colour, row in zip(COLOURS, rows, strict=False):
        lines = row["curves"][kind]
        for line in lines:
            axes.plot(row["updates"], line, color=colour, linewidth=0.4, alpha=0.5)
        mean = [_mean(list(values)) for values in zip(*lines, strict=True)]
        axes.plot(row["updates"], mean, color=colour, linewidth=1.6, label=arm_of(row).name)
    axes.set_xlabel("update", fontsize=7)
    axes.tick_params(labelsize=7)


def _ends(axes: Any, rows: list[dict[str, Any]], farms: list[float]) -> None:
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        arms.setdefault(arm_of(row).name, []).append(row)
    for number, (colour, (name, found)) in enumerate(zip(COLOURS, arms.items(), strict=False)):
        ends = [row["end"]["outcome"] for row in found]
        middle = [_mean(values) for values in ends]
        reach = [
            [m - min(v) for m, v in zip(middle, ends, strict=True)],
            [max(v) - m for m, v in zip(middle, ends, strict=True)],
        ]
        at = [place + 0.08 * (number - 1.5) for place in range(len(farms))]
        axes.errorbar(at, middle, reach, color=colour, marker="o", markersize=3, linewidth=1, capsize=2, label=name)
    axes.set_xticks(range(len(farms)), [f"{size:g}" for size in farms], fontsize=7)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("a well-formed call is worth", fontsize=7)
    axes.tick_params(labelsize=7)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
