"""The table of lychee_sgl/eval/README.md: the regression gate's figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from table_text import markdown, percent

if TYPE_CHECKING:
    from table_text import Record


def eval_gate(record: Record, file: str) -> str:
    """What the gate's arms reached."""

    def told(value: list[float] | None) -> str:
        return "-" if value is None else f"{percent(value[0])} [{percent(value[1])}, {percent(value[2])}]"

    rows = [
        (name, told(arm["score"]), told(arm["recall"]), percent(arm["attended"][0]), str(arm["answered"]))
        for name, arm in record["arms"].items()
    ]
    facts = record["facts"]
    return (
        f"{markdown(('arm', 'score', 'recall', 'attended', 'answers'), rows)}\n"
        f"{record['model']}, {facts['date']}. Again: `{facts['command']}`, then `lychee-sgl eval gate OUT --write`. "
        f"Data: [{file}](../../docs/measurements/{file}).\n"
    )
