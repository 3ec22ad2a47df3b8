"""Pictures of a head plan: in the terminal, and as a PNG."""

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from lychee_sgl.heads.plan import Head, HeadPlan


def _is_plain(plan: HeadPlan, head: Head) -> bool:
    """Whether a sparse head reads the same index of the layer before."""
    return plan.source(*head) == (head[0] - 1, head[1])


def title(plan: HeadPlan) -> str:
    """The plan's name and how much of it retrieves."""
    return f"{plan.name}: {plan.retrieval_count} of {plan.head_count} heads retrieve"


def role_table(plan: HeadPlan) -> Table:
    """One row a layer, one cell a KV head: `R` where it retrieves (bold: its set is read), else whose set it reads."""
    roots = set(plan.roots())
    table = Table(box=None, padding=(0, 1))
    table.add_column("layer", justify="right", style="dim")
    for index in range(plan.model.num_key_value_heads):
        table.add_column(str(index), justify="left")
    for layer in range(plan.model.num_hidden_layers):
        cells = []
        for index in range(plan.model.num_key_value_heads):
            head = (layer, index)
            if plan.is_retrieval(*head):
                cells.append(Text("R", style="bold green" if head in roots else "green"))
            else:
                source = "{}.{}".format(*plan.source(*head))
                cells.append(Text(f"· {source}", style="dim" if _is_plain(plan, head) else "cyan"))
        table.add_row(str(layer), *cells)
    return table


def save_png(plan: HeadPlan, path: Path) -> None:
    """Draw layers to the right, heads upwards: filled where a head retrieves, a line from each sparse head to its root.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra `train` brings it).
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, heads = plan.model.num_hidden_layers, plan.model.num_key_value_heads
    figure = Figure(figsize=(max(6.0, 0.35 * layers + 2), max(2.5, 0.5 * heads + 1.5)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for layer, head in plan.sparse_heads():
        root = plan.root(layer, head)
        axes.plot((root[0], layer), (root[1], head), color="tab:blue", linewidth=0.6, alpha=0.5, zorder=1)
    for retrieval, label, face in ((True, "retrieval", "tab:green"), (False, "sparse", "white")):
        points = [(i, h) for i in range(layers) for h in range(heads) if plan.is_retrieval(i, h) == retrieval]
        if points:
            across, up = ([point[axis] for point in points] for axis in (0, 1))
            axes.scatter(across, up, s=60, color=face, edgecolors="black", linewidths=0.7, label=label, zorder=2)
    axes.set(xlabel="layer", ylabel="KV head", yticks=range(heads), ylim=(-0.5, heads - 0.5))
    axes.set_title(title(plan), fontsize=10)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    figure.savefig(path, format="png", dpi=150)


def save_drift(report: dict[str, Any], path: Path) -> None:
    """Draw divergence, agreement and recall against the decoded position, a line for each arm.

    Args:
        report: what `lychee-sgl heads drift` writes.
        path: where the picture goes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra `train` brings it).
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = {"divergence": "KL from dense (nats)", "agreement": "same likeliest token", "recall": "recall"}
    budgets = sorted({arm["budget"] for arm in report["arms"]})
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (measure, label) in zip(figure.subplots(1, 3), labels.items(), strict=True):
        for arm in report["arms"]:
            points = [point for point in arm["points"] if point[measure] is not None]
            middle = [(point["from"] + point["to"]) / 2 for point in points]
            means, errors = ([point[measure][key] for point in points] for key in ("mean", "error"))
            style = {"color": f"C{budgets.index(arm['budget'])}", "linestyle": "--" if arm["correction"] else "-"}
            axes.errorbar(middle, means, yerr=errors, label=arm["name"], linewidth=1, capsize=2, **style)
        axes.set(xlabel="decoded tokens", ylabel=label)
    figure.axes[0].set_yscale("log")
    figure.axes[2].legend(fontsize=8)
    figure.suptitle(f"{report['model']}, plan {report['plan']}: sparse decoding on dense traces", fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def save_recall(report: dict[str, Any], path: Path) -> None:
    """Draw three maps, layers to the right and heads upwards: recall, own best and the difference of every sparse head.

    Args:
        report: what `lychee-sgl heads recall` writes.
        path: where the picture goes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra `train` brings it).
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, heads = (1 + max(row[key] for row in report["heads"]) for key in ("layer", "head"))
    maps = {
        name: [[float("nan")] * layers for _ in range(heads)] for name in ("recall", "own best", "own best - recall")
    }
    for row in report["heads"]:
        if row["root"] is not None:
            values = (row["recall"], row["own"], row["own"] - row["recall"])
            for cells, value in zip(maps.values(), values, strict=True):
                cells[row["head"]][row["layer"]] = value
    figure = Figure(figsize=(max(6.0, 0.3 * layers + 2), 3 * (0.3 * heads + 0.8)), layout="constrained")
    FigureCanvasAgg(figure)
    low = min(row["recall"] for row in report["heads"] if row["root"] is not None)
    for axes, (name, cells) in zip(figure.subplots(3, 1, sharex=True), maps.items(), strict=True):
        bounds = {"cmap": "magma_r"} if "-" in name else {"cmap": "viridis", "vmin": low, "vmax": 1.0}
        image = axes.imshow(cells, origin="lower", aspect="auto", **bounds)
        figure.colorbar(image, ax=axes, pad=0.01)
        axes.set_facecolor("lightgrey")  # what no value covers: retrieval heads
        axes.set_title(name, fontsize=9, loc="left")
        axes.set(ylabel="KV head", yticks=range(heads))
    figure.axes[2].set_xlabel("layer")
    mean = report["all"]
    figure.suptitle(
        f"{report['model']}, plan {report['plan']['name']}, sets of {report['share']:g} of the context: "
        f"recall {mean['recall']:.3f}, own best {mean['own']:.3f} (grey: retrieval heads)",
        fontsize=10,
    )
    figure.savefig(path, format="png", dpi=110)
