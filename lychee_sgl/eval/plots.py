"""The plots of a report, with matplotlib."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from lychee_sgl.eval.summary import Results

PIXELS: Final = 120
MARKERS: Final = "os^DvP*Xph<>"


def draw_plots(results: Results, summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the run has data for.

    Args:
        results: for the needle grid.
        summary: of `lychee_sgl.eval.summary.summarise`.
        folder: where the pictures go.

    Returns:
        `budget.png` (score and recall against the budget), `needle.png` (score by depth and length), `pareto.png`
        (score against what was read, and against seconds for each solved sample).
    """
    import matplotlib as mpl

    mpl.use("Agg")
    drawn = (_budget(results, summary), _needle(results), _pareto(results, summary))
    paths = []
    for name, figure in zip(("budget.png", "needle.png", "pareto.png"), drawn, strict=True):
        if figure is not None:
            figure.savefig(folder / name, dpi=PIXELS)
            paths.append(folder / name)
            _close(figure)
    return paths


def _figure(columns: int, rows: int = 1, height: float = 3.6) -> tuple[Any, np.ndarray[Any, Any]]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, height * rows), squeeze=False, layout="constrained"
    )
    return figure, axes


def _close(figure: Any) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


def _policies(results: Results) -> dict[str, list[str]]:
    """Arms by the line they belong to, the smallest budget first."""
    found: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for arm in results.arms:
        if arm.share is not None:
            found[arm.policy].append((arm.share, arm.name))
    return {policy: [name for _, name in sorted(arms)] for policy, arms in found.items()}


def _budget(results: Results, summary: Mapping[str, Any]) -> Any:
    shares = {arm.name: arm.share for arm in results.arms}
    policies = _policies(results)
    if not policies:
        return None
    figure, axes = _figure(2)
    for place, (policy, names) in enumerate(policies.items()):
        for axis, what in zip(axes[0], ("score", "recall"), strict=True):
            points = [(shares[name], summary["all"][name][what]) for name in names if summary["all"][name][what]]
            if points:
                budgets, estimates = zip(*points, strict=True)
                _line(axis, budgets, estimates, policy, place)
    base = summary["all"][summary["baseline"]]["score"]
    if base is not None:
        axes[0][0].axhline(100 * base[0], color="grey", linestyle="--", label=summary["baseline"])
    for axis, what in zip(axes[0], ("score, mean over tasks (%)", "recall (%)"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("budget, share of the context")
        axis.set_ylabel(what)
        ticks = sorted({share for share in shares.values() if share is not None})
        axis.set_xticks(ticks, [share_label(tick) for tick in ticks])
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    return figure


def share_label(share: float) -> str:
    """A budget on an axis: `1/8` only where it is one."""
    parts = round(1 / share)
    return f"{share:.3g}" if abs(1 / parts - share) > 1e-3 * share else f"1/{parts}" if parts > 1 else "1"


def _line(axis: Axes, at: Sequence[float], estimates: Sequence[Sequence[float]], label: str, place: int) -> None:
    middle = [100 * value[0] for value in estimates]
    low = [100 * (value[1] if value[1] is not None else value[0]) for value in estimates]
    high = [100 * (value[2] if value[2] is not None else value[0]) for value in estimates]
    colour = f"C{place % 10}"  # by the policy's place: one legend stands for all panels
    axis.plot(at, middle, marker=MARKERS[place % len(MARKERS)], markersize=4, label=label, color=colour)
    axis.fill_between(at, low, high, alpha=0.12, color=colour)


def _needle(results: Results) -> Any:
    grid = [sample for sample in results.samples.values() if sample.depth is not None]
    if not grid:
        return None
    depths = sorted({sample.depth for sample in grid if sample.depth is not None})
    lengths = sorted({sample.length for sample in grid})
    names = [arm.name for arm in results.arms]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = _figure(columns, rows, height=2.6)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    image = None
    for axis, name in zip(axes.flat, names, strict=False):
        values = np.full((len(depths), len(lengths)), np.nan)
        for y, depth in enumerate(depths):
            for x, length in enumerate(lengths):
                there = [s.key for s in grid if s.depth == depth and s.length == length]
                scores = [results.records[key, name].score for key in there if (key, name) in results.records]
                known = [score for score in scores if score is not None]
                if known:
                    values[y, x] = sum(known) / len(known)
        image = axis.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        axis.set_title(name, fontsize=9)
        axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=7)
        axis.set_yticks(range(len(depths)), [f"{100 * depth:.0f}%" for depth in depths], fontsize=7)
        axis.set_xlabel("tokens", fontsize=8)
        axis.set_ylabel("depth", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=axes, label="found", shrink=0.8)
    return figure


def _pareto(results: Results, summary: Mapping[str, Any]) -> Any:
    names = [arm.name for arm in results.arms if summary["all"][arm.name]["score"] is not None]
    if len(names) < 2:
        return None
    figure, axes = _figure(2, height=4.2)
    policies = {arm.name: arm.policy for arm in results.arms}
    order = list(dict.fromkeys(policies.values()))
    for axis, what in zip(axes[0], ("attended", "seconds_per_solved"), strict=True):
        points = []
        for name in names:
            line = summary["all"][name]
            cost = line[what][0] if isinstance(line[what], list) else line[what]
            if cost is not None:
                points.append((100 * cost if what == "attended" else cost, 100 * line["score"][0], name))
        for cost, score, name in points:
            place = order.index(policies[name])
            axis.plot(cost, score, MARKERS[place % len(MARKERS)], color=f"C{place % 10}", label=policies[name])
            budget = name.removeprefix(policies[name]).strip()
            axis.annotate(budget, (cost, score), fontsize=6, xytext=(3, 3), textcoords="offset points")
        front = pareto_front([(cost, score) for cost, score, _ in points])
        axis.step([cost for cost, _ in front], [score for _, score in front], where="post", color="grey", alpha=0.6)
        axis.set_ylabel("score, mean over tasks (%)")
        axis.grid(alpha=0.3)
    handles = {
        label: handle
        for axis in axes[0]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        if label in order
    }
    axes[0][1].legend(handles.values(), handles.keys(), fontsize=7)
    axes[0][0].set_xlabel("KV entries read, share of dense (%)")
    axes[0][1].set_xlabel("seconds for each solved sample")
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (cost, score) that no other beats: none is as cheap with a better score. The cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front
