"""A training's curves, drawn from its record: needs matplotlib and nothing of torch."""

import json
from pathlib import Path


def save_png(record: Path, png: Path) -> None:
    """Draw the loss of each task at each ratio over the steps, smoothed.

    Args:
        record: `training.json` of a compressor.
        png: the picture.

    Raises:
        ValueError: the record is not one of a training.
        ModuleNotFoundError: matplotlib is not installed (the extra `train` brings it).
        OSError: a file cannot be read or written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    try:
        told = json.loads(record.read_text(encoding="utf-8"))
        if told["schema"] != "lychee-sgl/compressor-training":
            raise ValueError(told["schema"])
        tasks, history = told["tasks"], told["history"]
        ratios = sorted({int(row[0]) for row in history})
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{record} is not the record of a compressor's training") from error
    figure = Figure(figsize=(4.2 * len(tasks), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (axes, task) in enumerate(zip(figure.subplots(1, len(tasks)), tasks, strict=True)):
        for ratio in ratios:
            steps = [step for step, row in enumerate(history) if int(row[0]) == ratio]
            axes.plot(
                steps, _smooth([history[step][2 + number] for step in steps]), label=f"ratio {ratio}", linewidth=1
            )
        axes.set(title=f"{task}: nats a token", xlabel="step", ylim=(0, None))
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(png, format="png", dpi=110)


def _smooth(values: list[float], weight: float = 0.95) -> list[float]:
    """An exponential mean that begins unbiased."""
    smooth, total, parts = [], 0.0, 0.0
    for value in values:
        total, parts = weight * total + value, weight * parts + 1.0
        smooth.append(total / parts)
    return smooth
