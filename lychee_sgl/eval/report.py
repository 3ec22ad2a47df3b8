"""Writes a run's report: Markdown, CSV, JSON, and the plots."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.eval.plots import draw_plots
from lychee_sgl.eval.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lychee_sgl.eval.summary import Results
    from lychee_sgl.eval.tasks import Entry

ARMS_A_TABLE: Final = 6
COLUMNS: Final = (
    "task", "length", "arm", "asked", "answered", "errors", "score", "score_low", "score_high", "distance",
    "distance_low", "distance_high", "partial", "answer_tokens", "longer", "seconds", "seconds_per_solved", "attended",
    "attended_low", "attended_high", "recall", "recall_low", "recall_high",
)  # fmt: skip
HOW: Final = """\
Scores are percentages; in brackets the 95% interval: Wilson where a task is right or wrong, else a percentile
bootstrap over samples; a mean over tasks combines its tasks' intervals (MOVER). *Distance* is the mean of the paired
differences from `{base}`, in points. *Longer* is the mean length of an answer over the baseline's on the same samples.
Seconds are from the request to its end with the prompt in the prefix cache, so no arm pays for the prefill; *per
solved* is their sum over the sum of the scores. *Attended* is the share of KV entries that was read, *recall* the
attention mass it held.
"""


def write_report(results: Results, folder: Path) -> list[Path]:
    """Write `report.md`, `results.csv`, `summary.json` and the plots.

    Args:
        results: of one or several runs.
        folder: where they go.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(results)
    plots = draw_plots(results, summary, folder)
    texts = {
        "summary.json": json.dumps(summary, indent=1) + "\n",
        "results.csv": csv_text(summary),
        "report.md": markdown(summary, [path.name for path in plots]),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / name for name in texts), *plots]


def markdown(summary: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """The report as one page."""
    base = summary["baseline"]
    parts = ["# Evaluation\n", _origin(summary), _warnings(summary), "## All tasks\n", overview(summary["all"])]
    if summary["able"] and len(summary["able"]) < len(summary["tasks"]):
        told = (
            f"## The tasks that `{base}` can do\n\nThose with a score of at least 30%: {', '.join(summary['able'])}.\n"
        )
        parts += [told, overview(summary["over_able"])]
    parts += ["## By task\n", scores(summary), "## By task: distance\n", scores(summary, "distance")]
    parts += [f"![{name.removesuffix('.png')}]({name})\n" for name in plots]
    parts += ["## How to read it\n", HOW.format(base=base)]
    return "\n".join(part for part in parts if part)


def overview(table: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each arm."""
    head = (
        "arm", "score", "distance", "tokens", "longer", "seconds", "per solved", "attended", "recall", "answers",
        "errors",
    )  # fmt: skip
    rows = [
        (
            name,
            estimate(line["score"]),
            estimate(line["distance"], sign=True),
            _number(line["answer_tokens"], ".1f"),
            _number(line["longer"], ".2f", "x"),
            _number(line["seconds"], ".2f"),
            _number(line["seconds_per_solved"], ".1f"),
            _percent(line["attended"]),
            _percent(line["recall"]),
            str(line["answered"]),
            str(line["errors"]),
        )
        for name, line in table.items()
    ]
    return _table(head, rows)


def scores(summary: Mapping[str, Any], what: str = "score") -> str:
    """Tasks by arms, with intervals, a few arms to a table; in the last line their means."""
    arms = [name for name in summary["all"] if what == "score" or name != summary["baseline"]]
    parts = []
    for start in range(0, len(arms), ARMS_A_TABLE):
        some = arms[start : start + ARMS_A_TABLE]
        rows = [
            (task, *(estimate(table[name][what], sign=what == "distance") for name in some))
            for task, table in summary["tasks"].items()
        ]
        rows.append(("**mean**", *(estimate(summary["all"][name][what], sign=what == "distance") for name in some)))
        parts.append(_table(("task", *some), rows))
    return "\n".join(parts)


def estimate(value: Sequence[float | None] | None, *, sign: bool = False) -> str:
    """A mean and its interval, in percent."""
    middle, low, high = value or (None, None, None)
    if middle is None:
        return "-"
    plus = "+" if sign else ""
    text = f"{100 * middle:{plus}.1f}"
    return text if low is None or high is None else f"{text} [{100 * low:{plus}.0f}, {100 * high:{plus}.0f}]"


def csv_text(summary: Mapping[str, Any]) -> str:
    """Every cell and every mean as one line."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    groups = [
        *((*key.rsplit("/", 1), table) for key, table in summary["cells"].items()),
        *((task, "all", table) for task, table in summary["tasks"].items()),
        ("over_able", "all", summary["over_able"]),
        ("all", "all", summary["all"]),
    ]
    for task, length, table in groups:
        for arm, line in table.items():
            row = {"task": task, "length": length, **{key: line[key] for key in line if key in COLUMNS}, "arm": arm}
            for name in ("score", "distance", "attended", "recall"):
                row[name], row[f"{name}_low"], row[f"{name}_high"] = line[name] or (None, None, None)
            writer.writerow(row)
    return buffer.getvalue()


def task_table(entries: Iterable[Entry]) -> str:
    """The catalogue as a table in Markdown."""
    rows = [(f"`{e.name}`", e.summary or "as its authors ask it", e.source, e.metric, e.needs) for e in entries]
    return _table(("task", "what is asked", "from", "score", "needs"), rows, left=5)


def _origin(summary: Mapping[str, Any]) -> str:
    lines = []
    for run in summary["runs"]:
        facts, identity = run["facts"], run["identity"]
        settings = identity["settings"]
        plan = (facts.get("server") or {}).get("plan") or {}
        named = f", head plan {plan['name']}" if plan.get("name") else ""
        lines.append(
            f"{identity['model']}{named}; seed {settings['seed']}, {settings['samples']} samples of each task and "
            f"length; RULER as of {identity['ruler'][:12]}; {facts.get('date', '')}. "
            f"Again: `{facts.get('command', '')}`.\n"
        )
    return "\n".join(lines)


def _warnings(summary: Mapping[str, Any]) -> str:
    errors = sum(line["errors"] for line in summary["all"].values())
    found = []
    if summary["missing"]:
        found.append(f"**{summary['missing']} samples have not been asked yet.**")
    if summary["asked_differently"]:
        found.append(f"**The runs did not ask in the same way:** {'; '.join(summary['asked_differently'])}.")
    for name, tasks in summary["without_answers"].items():
        found.append(f"**`{name}` has no answer to {', '.join(tasks)}: its means are over the other tasks alone.**")
    if errors:
        told = "; ".join(f"{count} times: {message}" for message, count in summary["error_messages"].items())
        found.append(f"**{errors} answers are errors and count in no mean.** {told}")
    return "\n\n".join(found) + "\n" if found else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _percent(value: Sequence[float | None] | None) -> str:
    return "-" if value is None or value[0] is None else f"{100 * value[0]:.1f}"
