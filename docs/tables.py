"""Writes the READMEs' tables out of the committed measurements: `python docs/tables.py`, with `--check` only compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, its heading included. Where the measurement is
missing, the section is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING

from table_text import MEASUREMENTS, ROOT, Record
from tables_compressor import compressor, reinforcement
from tables_cpu import cpu_speed, demo, gateway, questions, recall_hold, start
from tables_eval import drift, eval_gate, recall_heads
from tables_gpu import gpu_attention, gpu_engine, gpu_engine_more, gpu_ranks
from tables_memory import memory_arms, memory_gate, memory_lengths
from tables_plans import plans, step_times
from tables_policies import policies
from tables_router import router_engines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ROOMS = ("heads", "eval", "memory", "compressor")
PAGES = tuple(
    ROOT / folder / "README.md"
    for folder in (".", "server", "kernels", "deploy", *(f"lychee_sgl/{room}" for room in _ROOMS))
)
SECTION = re.compile(r"(?<=<!-- table: )(?P<name>[\w-]+) -->\n.*?(?=<!-- end -->)", re.DOTALL)

TABLES: dict[str, tuple[str, Callable[[Record, str], str]]] = {
    "demo": ("demo.json", demo),
    "questions": ("demo.json", questions),
    "cpu-speed": ("cpu-speed.json", cpu_speed),
    "start": ("start.json", start),
    "gpu-engine": ("gpu-engine.json", gpu_engine),
    "gpu-attention": ("gpu-attention.json", gpu_attention),
    "gpu-engine-qwen3": ("gpu-engine-qwen3.json", gpu_engine_more),
    "plans": ("plans.json", plans),
    "step-times": ("step-times.json", step_times),
    "gateway": ("gateway.json", gateway),
    "recall-hold": ("recall-hold.json", recall_hold),
    "eval-gate": ("eval-gate.json", eval_gate),
    "policies": ("eval-policies.json", policies),
    "drift": ("drift.json", drift),
    "recall-heads": ("recall-heads.json", recall_heads),
    "memory-gate-words": ("memory-gate-words.json", memory_gate),
    "memory-gate": ("memory-gate.json", memory_gate),
    "memory-arms": ("memory-arms.json", memory_arms),
    "memory-long": ("memory-long.json", memory_lengths),
    "memory-million": ("memory-million.json", memory_lengths),
    "memory-second": ("memory-second.json", memory_lengths),
    "memory-gpu": ("memory-gpu.json", memory_lengths),
    "memory-gpu-million": ("memory-gpu-million.json", memory_lengths),
    "memory-compressed": ("memory-compressed.json", memory_lengths),
    "memory-compressed-million": ("memory-compressed-million.json", memory_lengths),
    "memory-compressed-second": ("memory-compressed-second.json", memory_lengths),
    "compressor": ("compressor.json", compressor),
    "reinforcement": ("compressor.json", reinforcement),
    "router-engines": ("router-engines.json", router_engines),
    "gpu-tp2": ("gpu-tp2.json", gpu_ranks),
}


def fill(text: str, folder: Path) -> str:
    """Put every section anew.

    Args:
        text: the page, with its markers.
        folder: where the measurements are.

    Returns:
        The page; a section whose measurement is missing is empty.

    Raises:
        KeyError: a marker names an unknown table, or a measurement lacks a field.
    """

    def section(found: re.Match[str]) -> str:
        file, write = TABLES[found["name"]]
        path = folder / file
        body = write(json.loads(path.read_text(encoding="utf-8")), file) if path.exists() else ""
        return f"{found['name']} -->\n{body}"

    return SECTION.sub(section, text)


def main() -> int:
    """Write the pages, or with `--check` say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 when a page is not current")
    check = parser.parse_args().check
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = fill(old, MEASUREMENTS)
        if check and new != old:
            return 1
        if not check:
            page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
