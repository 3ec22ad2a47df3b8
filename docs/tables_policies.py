"""The tables of lychee_sgl/eval/README.md: which policy wins where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table_text import markdown, percent

if TYPE_CHECKING:
    from table_text import Record


def _points(value: list[float] | None, *, sign: bool = False) -> str:
    """A mean and its interval, in points."""
    if value is None:
        return "-"
    mean, low, high = (100 * part + 0.0 for part in value)
    return f"{mean:+.1f} [{low:+.0f}, {high:+.0f}]" if sign else f"{mean:.1f} [{low:.0f}, {high:.0f}]"


def _arms(record: Record) -> str:
    rows = []
    for name, arm in record["over_able"].items():
        recall = "-" if arm["recall"] is None else percent(arm["recall"][0])
        answers, score = f"{arm['answered']} of {arm['asked']}", _points(arm["score"])
        distance = _points(arm["distance"], sign=True)
        rows.append((name, answers, score, distance, f"{arm['longer']:.2f}x", percent(arm["attended"][0]), recall))
    head = ("arm", "answers", "score", "against dense", "length", "attended", "recall")
    return markdown(head, rows)


def _tasks(record: Record) -> str:
    arms = [name for name in record["all"] if name == "dense" or (name.endswith(" 1/8") and "corrected" not in name)]
    rows = []
    for task, cells in record["tasks"].items():
        told = []
        for name in arms:
            score, distance = (cells[name][key] for key in ("score", "distance"))
            beside = "" if distance is None else f" ({100 * distance[0] + 0.0:+.0f})"
            told.append("-" if score is None else f"{100 * score[0]:.0f}{beside}")
        rows.append((f"`{task}`", *told))
    return markdown(("task", *arms), rows)


def policies(record: Record, file: str) -> str:
    """What each policy and head plan keeps of dense's answers."""
    able = ", ".join(f"`{task}`" for task in record["able"])
    lengths = ", ".join(f"{length:,}" for length in record["lengths"])
    return (
        f"{record['model']}, {record['samples']} samples of each task at {lengths} tokens (traces at 512 and 1,024). "
        f"Over the tasks that dense can do (a score of 30% or more: {able}), each weighing the same; 95% intervals in "
        "brackets. *Against dense*: in points, on the samples that both answered. *Length*: answers over dense's.\n\n"
        f"{_arms(record)}\n"
        "![points lost to dense, by policy and budget](../../docs/images/policies.png)\n\n"
        "By task at 1/8, and in brackets the points against dense on the same samples:\n\n"
        f"{_tasks(record)}\n"
        f"{record['device']}, SGLang {record['versions']['sglang']}, torch {record['versions']['torch']}, "
        f"{record['date']}. Again: `{record['runs'][0]['command']}` and so on: one command an engine, all of "
        f"them in the data, then `lychee-sgl eval report runs/*`. Data: [{file}](../../docs/measurements/{file}).\n"
    )
