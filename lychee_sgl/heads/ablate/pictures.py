"""An ablation's curves as a picture, drawn from its report: needs matplotlib and nothing of torch."""

import json
from pathlib import Path
from typing import Any

from lychee_sgl.heads.ablate.report import SCHEMA, curve_points, ranked


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not the report of an ablation: {error}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not the report of an ablation")
    return report


def save_curves_png(report: dict[str, Any], png: Path) -> None:
    """Draw scores and recall against the share of retrieval heads, and every plan's scores against the budget.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra `train` brings it).
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 6), layout="constrained")
    FigureCanvasAgg(figure)
    by_count, by_recall, by_budget = figure.subplots(1, 3)
    scores, plans = report["scores"], report["plans"]
    heads = next(iter(plans.values()))["heads"] if plans else 1
    for family, line in curve_points(report).items():
        counts = sorted(line)
        shares = [100 * count / heads for count in counts]
        right = [100 * line[count]["share"] for count in counts]
        errors = [[100 * (line[c]["share"] - line[c]["low"]) for c in counts],
                  [100 * (line[c]["high"] - line[c]["share"]) for c in counts]]  # fmt: skip
        by_count.errorbar(shares, right, yerr=errors, marker="o", capsize=2, label=family)
        by_recall.plot(shares, [line[count]["recall"] for count in counts], marker="o", label=family)
    several = ranked(report) if len(report["budgets"]) > 1 else []
    for number, name in enumerate(several):
        right = [100 * scores[f"{name}@{budget}"]["all"]["share"] for budget in report["budgets"]]
        # ten colours, so a new line style after every ten; the legend is in the order of the lines
        style = ("-", "--", ":")[number // 10 % 3]
        by_budget.plot(report["budgets"], right, style, marker=".", color=f"C{number % 10}", label=name)
    dense = 100 * scores["dense"]["all"]["share"]
    for axes in (by_count, by_budget):
        axes.axhline(dense, color="black", linestyle="--", linewidth=1, label="dense")
        axes.set(ylabel="questions answered right, %")
    by_count.set(xlabel="retrieval heads, % of all")
    by_recall.set(xlabel="retrieval heads, % of all", ylabel="attention-mass recall")
    by_budget.set(xlabel="budget, tokens", xscale="log")
    by_budget.set_xticks(report["budgets"], labels=[str(budget) for budget in report["budgets"]])
    by_budget.minorticks_off()
    for axes in (by_count, by_recall):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    by_budget.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(png, format="png", dpi=120)
