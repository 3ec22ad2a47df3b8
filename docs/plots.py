"""Draws measurements: `python docs/plots.py` writes gpu, policies, documents and compressor.png in docs/images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from matplotlib.figure import Figure
from PIL import Image

from lychee_sgl.bench.memory_report import plot

DOCS = Path(__file__).parent
KERNELS = {
    "attend_kernel": "attend",
    "merge_kernel": "merge",
    "count_scores_kernel": "count",
    "compact_kernel": "compact",
}
COLOURS = ("#2f6f8f", "#7fb3c8", "#c9803f", "#e6b980")


def _speedups(axes: Any, record: dict[str, Any]) -> None:
    shown = {name: line for name, line in record["lychee"]["batches"].items() if ":" not in name}
    order = sorted(shown, key=lambda name: (int(name.split("x")[1]), int(name.split("x")[0])))
    for row, name in enumerate(order):
        stock = record["flashinfer"]["batches"].get(name, shown[name])["dense"]["median_ms"]
        speedup = stock / shown[name]["sparse"]["median_ms"]
        axes.barh(row, speedup, color=COLOURS[0] if shown[name]["attended_fraction"] < 1 else "#b9bec3")
        axes.text(speedup + 0.03, row, f"{speedup:.2f}x", va="center", fontsize=8)
    axes.set_xlim(0, 3.2)
    axes.axvline(1, color="#555", linewidth=0.8)
    axes.set_yticks(
        range(len(order)), [f"{int(n.split('x')[0]) // 1024}K x {n.split('x')[1]}" for n in order], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_title("Tokens per second over FlashInfer's (grey: runs dense)", fontsize=9)


def _split(axes: Any, record: dict[str, Any]) -> None:
    for row, case in enumerate(record["cases"].values()):
        left = 0.0
        for colour, (kernel, label) in zip(COLOURS, KERNELS.items(), strict=True):
            width = case["kernels"][kernel]["us"] / 1000
            axes.barh(row, width, left=left, color=colour, label=label if row == 0 else None)
            left += width
        dense = case["times"]["flashinfer"]["median_us"] / 1000
        axes.text(left + 0.05, row, f"FlashInfer {dense:.1f} ms", va="center", fontsize=8)
    names = [f"{int(n.split('x')[0]) // 1024}K x {n.split('x')[1]}" for n in record["cases"]]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 6)
    axes.set_xlabel("ms of attention a token, all layers", fontsize=8)
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    axes.set_title("Where the attention's time goes", fontsize=9)


GROUPS = (
    ("the head plan", ("plan",)),
    ("other head plans", ("cover-effect", "l1-measured", "kuma-same-index", "heuristic", "layerwise-measured")),
    ("other policies", ("oracle", "block", "quest", "window", "random")),
)


def _policies(axes: Any, record: dict[str, Any]) -> None:
    """Distance from dense with its interval, an arm a row; a budget a colour."""
    shades = {"1/4": "#8fbcd0", "1/8": "#2f6f8f", "1/16": "#143747"}
    row, names = 0, []
    for _, group in GROUPS:
        for name in group:
            for budget, colour in shades.items():
                arm = record["over_able"].get(f"{name} {budget}")
                if arm is None or record["without_answers"].get(f"{name} {budget}"):
                    continue
                mean, low, high = (100 * part for part in arm["distance"])
                axes.plot([low, high], [row, row], color=colour, linewidth=2)
                axes.plot([mean], [row], "o", color=colour, markersize=5)
                names.append(f"{name} {budget} ({arm['attended'][0]:.0%} read)")
                row += 1
        row += 1
        names.append("")
    axes.axvline(0, color="#555", linewidth=0.8)
    axes.set_yticks(range(len(names) - 1), names[:-1], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel("points against dense, tasks that dense can do; 95% intervals", fontsize=8)


def _kept(axes: Any, record: dict[str, Any], score: str, title: str) -> None:
    """What is kept of held-out texts, by ratio."""
    judged = record["evaluation"]
    ratios = [int(ratio) for ratio in judged["ratios"]]
    for arm, colour in zip(("trained", "untrained", "truncation"), (COLOURS[0], COLOURS[1], COLOURS[2]), strict=True):
        shares = [100 * arms[arm][score][0] for arms in judged["ratios"].values()]
        axes.plot(ratios, shares, "o-", color=colour, markersize=4, label=arm)
    for bound, style in (("whole", "--"), ("nothing", ":")):
        axes.axhline(100 * judged["bounds"][bound][score][0], color="#555", linewidth=0.8, linestyle=style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ratios, [str(ratio) for ratio in ratios])
    axes.set_ylim(-3, 103)
    axes.set_xlabel("tokens an embedding stands for", fontsize=8)
    axes.set_title(f"{title}, %", fontsize=9)


def _reinforced(axes: Any, record: dict[str, Any]) -> None:
    """Right answers before and after, a line for each seed."""
    for run in record["reinforcement"]:
        (before,), (after,) = (list(run[key].values()) for key in ("before", "after"))
        shares = [100 * before["all"][0], 100 * after["all"][0]]
        axes.plot([0, 1], shares, "o-", color=COLOURS[2] if run["direct"] else COLOURS[0], markersize=4)
    for name, colour in (("behind gates", COLOURS[0]), ("added up directly", COLOURS[2])):
        axes.plot([], [], "o-", color=colour, markersize=4, label=name)
    axes.set_xticks([0, 1], ["before", "after"])
    axes.set_xlim(-0.3, 1.3)
    axes.set_ylim(bottom=0)
    axes.set_title("questions answered at ratio 2, %", fontsize=9)


def _saved(figure: Figure, name: str) -> None:
    with io.BytesIO() as raw:
        figure.savefig(raw, dpi=110, format="png")
        _small(raw, name)


def _small(picture: IO[bytes] | Path, name: str) -> None:
    """As few colours as pictures of this kind have."""
    shown = Image.open(picture).convert("RGB")
    shown.quantize(64, dither=Image.Dither.NONE).save(DOCS / "images" / name, optimize=True)


def main() -> None:
    """Write the pictures."""
    shown = Figure(figsize=(7, 5), layout="constrained")
    below = shown.subplots()
    _policies(below, json.loads((DOCS / "measurements" / "eval-policies.json").read_text(encoding="utf-8")))
    below.spines[["top", "right"]].set_visible(False)
    below.tick_params(labelsize=8)
    _saved(shown, "policies.png")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _speedups(left, json.loads((DOCS / "measurements" / "gpu-engine.json").read_text(encoding="utf-8")))
    _split(right, json.loads((DOCS / "measurements" / "gpu-attention.json").read_text(encoding="utf-8")))
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    _saved(figure, "gpu.png")
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, 3)
    record = json.loads((DOCS / "measurements" / "compressor.json").read_text(encoding="utf-8"))
    _kept(panels[0], record, "token_accuracy", "tokens reconstructed")
    _kept(panels[1], record, "answers", "questions answered")
    _reinforced(panels[2], record)
    for axes in panels:
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="best")
    _saved(figure, "compressor.png")
    read = [json.loads((DOCS / "measurements" / f"memory-{name}.json").read_text()) for name in ("long", "million")]
    with TemporaryDirectory() as folder:
        drawn = Path(folder) / "documents.png"
        plot([cell for record in read for cell in record["cells"]], drawn)
        _small(drawn, drawn.name)


if __name__ == "__main__":
    main()
