"""What every table of the READMEs is written with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[1]
MEASUREMENTS = ROOT / "docs" / "measurements"

Record = dict[str, Any]


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> str:
    """A table; the first `left` columns are aligned left, the others right."""
    names = list(head)
    lines = [names, [*["---"] * left, *["---:"] * (len(names) - left)], *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal."""
    return "-" if share is None else f"{100 * share:.1f}%"


def milliseconds(value: float | None) -> str:
    """A time in seconds as milliseconds, or as seconds from one second on."""
    if value is None:
        return "-"
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def cell(text: str) -> str:
    """Text of a model, safe inside a table's cell."""
    flat = " ".join(text.split())
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", flat)


def origin(record: Record, file: str, folder: str = "docs/measurements") -> str:
    """Where a measurement was taken, and how it is repeated."""
    machine, versions = record["machine"], record["versions"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_before'][0]:.1f} before the run, "
        f"SGLang {versions['sglang']}, torch {versions['torch']}, {record['date']}. "
        f"Again: `{record['command']}`. Data: [{file}]({folder}/{file}).\n"
    )
