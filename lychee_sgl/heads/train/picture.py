"""A training as a picture, drawn from its record: needs matplotlib and nothing of torch."""

import json
from pathlib import Path


def save_training_png(record: Path, png: Path) -> None:
    """Draw loss, expected count, and the mean of every gate over the steps.

    Args:
        record: `X.training.json`.
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
        history, settings = told["history"], told["settings"]
        grids, moments = history["gates"], history["gate_steps"]
        gates = [z for row in grids[-1] for z in row]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{record} is not the record of a training (X.training.json)") from error

    figure = Figure(figsize=(13, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (loss, count), (course, final) = figure.subplots(2, 2)
    steps = range(1, len(history["loss"]) + 1)
    loss.plot(steps, history["loss"], linewidth=0.7)
    loss.set(title="distillation loss, as a share of that with no gate on", xlabel="step", yscale="log")
    count.plot(steps, history["count"], label="expected")
    count.plot(steps, history["target"], linestyle="--", label="asked for")
    count.set(title=f"heads that are not off; {settings['retrieval']} wanted", xlabel="step")
    count.legend()
    lines = [[z for row in grid for z in row] for grid in grids]
    for head in range(len(grids[-1][0]), len(gates)):  # layer 0 has no gates
        course.plot(moments, [line[head] for line in lines], linewidth=0.6, alpha=0.6)
    course.set(title="E[z] of every gate", xlabel="step", ylim=(-0.02, 1.02))
    image = final.imshow(list(zip(*grids[-1], strict=True)), aspect="auto", vmin=0, vmax=1, cmap="viridis")
    final.set(title="E[z] at the end", xlabel="layer", ylabel="KV head", yticks=range(len(grids[-1][0])))
    figure.colorbar(image, ax=final)
    figure.suptitle(
        f"{told['model']}: {settings['gate']}, {settings['sources']} sources, {settings['chain']} chain, "
        f"{settings['objective']}, budget {settings['budget']}, seed {settings['seed']}"
    )
    figure.savefig(png, format="png", dpi=120)
