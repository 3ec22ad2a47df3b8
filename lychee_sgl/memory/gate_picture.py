"""Draws how gates do: ROC curves, and what is accepted of each kind of question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def save_png(record: Mapping[str, Any], path: Path) -> None:
    """Draws a measurement.

    Args:
        record: what `gate_fit.measure` gave.
        path: where the picture goes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, kinds = figure.subplots(1, 2, width_ratios=(1, 1.3))
    for name, arm in record["arms"].items():
        points = sorted([[0.0, 0.0], *arm["roc"], [1.0, 1.0]])
        (line,) = curves.plot(*zip(*points, strict=True), label=f"{name}, area {arm['auc'][0]:.3f}")
        if arm["recall"][0] is not None and arm["skipped"][0] is not None:
            curves.plot([1 - arm["skipped"][0]], [arm["recall"][0]], "o", color=line.get_color())
    curves.set(xlabel="of the blocks nobody needs, accepted", ylabel="of the needed blocks, accepted")
    curves.set_title("Held-out blocks (dots: the thresholds)", fontsize=10)
    curves.legend(fontsize=8, loc="lower right")
    names = [kind for kind, row in record["kinds"].items() if row["asked"]]
    ways = list(record["arms"])
    for number, way in enumerate(ways):
        shares = [record["kinds"][kind]["accepted"][way] / record["kinds"][kind]["asked"] for kind in names]
        kinds.barh([row + (number - len(ways) / 2) * 0.2 for row in range(len(names))], shares, height=0.2, label=way)
    kinds.set_yticks(range(len(names)), names, fontsize=8)
    kinds.invert_yaxis()
    kinds.set_title("Share that is accepted", fontsize=10)
    kinds.legend(fontsize=8)
    for axes in (curves, kinds):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
