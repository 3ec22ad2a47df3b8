"""What the answers about long documents come to: tables, JSON, a plot."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from lychee_sgl.heads.evaluate.scores import wilson

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from lychee_sgl.bench.memory import Row


def report(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One record for each length, method and kind of question, and one for all kinds together (`all`).

    Returns:
        Accuracy with its 95% interval (Wilson), tokens read and peak memory; where documents are read the mean numbers
        of blocks and of those that a gate skipped; of `all` also the median seconds of the first question on a document
        and of the later ones, and how often faster these are.
    """
    records = []
    for tokens in sorted({row.tokens for row in rows}):
        for method in dict.fromkeys(row.method for row in rows):
            these = [row for row in rows if (row.tokens, row.method) == (tokens, method)]
            kinds = [*dict.fromkeys(row.kind for row in these), "all"] if these else []
            for kind in kinds:
                of_kind = [row for row in these if kind in ("all", row.kind)]
                records.append({"tokens": tokens, "method": method, "kind": kind, **_record(of_kind, kind == "all")})
    return records


def _record(rows: Sequence[Row], every: bool) -> dict[str, Any]:
    right = sum(row.right for row in rows)
    low, high = wilson(right, len(rows))
    peaks = [row.peak_bytes for row in rows if row.peak_bytes is not None]
    found: dict[str, Any] = {
        "asked": len(rows),
        "right": right,
        "accuracy": round(right / len(rows), 4),
        "interval": [round(low, 4), round(high, 4)],
        "tokens_read": round(sum(row.tokens_read for row in rows) / len(rows)),
        "peak_gib": round(max(peaks) / 2**30, 2) if peaks else None,
    }
    accounts = [row.account for row in rows if row.account is not None]
    for name, key in (("blocks", "chunks"), ("gated", "gated")):
        found[name] = round(sum(one.get(key, 0) for one in accounts) / len(accounts), 2) if accounts else None
    if every:
        first, later = _seconds(rows, first=True), _seconds(rows, first=False)
        found["first_seconds"], found["later_seconds"] = first, later
        found["later_is_faster"] = round(first / later, 2) if first and later else None
    return found


def _seconds(rows: Iterable[Row], *, first: bool) -> float | None:
    found = [row.seconds for row in rows if (row.order == 0) is first]
    return round(median(found), 2) if found else None


def plot(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws accuracy, time and memory against the document's length, a line a method.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, seconds, memory = figure.subplots(1, 3)
    every = [record for record in records if record["kind"] == "all"]
    lengths = sorted({record["tokens"] for record in every})
    for place, method in enumerate(dict.fromkeys(record["method"] for record in every)):
        of_method = [record for record in every if record["method"] == method]
        look: dict[str, Any] = {"color": f"C{place}", "marker": "o", "label": method}
        x = [record["tokens"] for record in of_method]
        y = [record["accuracy"] for record in of_method]
        below = [record["accuracy"] - record["interval"][0] for record in of_method]
        above = [record["interval"][1] - record["accuracy"] for record in of_method]
        accuracy.errorbar(x, y, yerr=[below, above], capsize=3, **look)
        for key, style in (("first_seconds", "-"), ("later_seconds", "--")):
            timed = [(record["tokens"], record[key]) for record in of_method if record[key]]
            label = method if style == "-" else "_"  # dashes are told in the title
            seconds.plot([a for a, _ in timed], [b for _, b in timed], style, **{**look, "label": label})
        held = [(record["tokens"], record["peak_gib"]) for record in of_method if record["peak_gib"] is not None]
        memory.plot([a for a, _ in held], [b for _, b in held], **look)
    titles = ("right answers", "seconds to a first answer, dashed to later ones", "peak memory, GiB")
    for axes, title in zip((accuracy, seconds, memory), titles, strict=True):
        axes.set(title=title, xlabel="tokens of the document", xscale="log")
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.set_xticks([], minor=True)
    seconds.set(yscale="log")
    seconds.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    seconds.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    seconds.yaxis.set_minor_formatter(NullFormatter())
    accuracy.set(ylim=(-0.03, 1.03))
    memory.set(ylim=(0, 1.2 * max((record["peak_gib"] or 0.0 for record in every), default=1.0) or 1.0))
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=len(every), frameon=False)
    figure.savefig(path, dpi=120)
