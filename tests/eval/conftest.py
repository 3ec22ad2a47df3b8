from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.eval.config import Settings, parse_settings
from tests.eval.oracle import Oracle
from tests.gateway.scripted_engine import ThreadedServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lychee_sgl.eval.store import Record

ARMS = [
    {"name": "dense", "lychee": {"budget": "dense"}},
    {
        "name": "{policy} {value}",
        "lychee": {"mode": "ratio"},
        "grid": {"policy": ["ours", "quest"], "value": [0.125, 0.25]},
    },
]


class Silent:
    """Hears how far a run is, and remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.records: list[Record | None] = []

    def stage(self, text: str, total: int | None = None) -> None:
        self.stages.append(text)

    def advance(self, record: Record | None = None) -> None:
        self.records.append(record)


@pytest.fixture
def oracle() -> Iterator[tuple[Oracle, str]]:
    made = Oracle()
    with serving(ThreadedServer(made.app)) as server:
        yield made, server.url


@pytest.fixture
def silent() -> Silent:
    return Silent()


def settings(**values: Any) -> Settings:
    """A small run over the language reference."""
    start: dict[str, Any] = {
        "samples": 3,
        "lengths": [1500],
        "tasks": ["niah_single_2", {"name": "niah_multivalue"}],
        "arms": ARMS,
        "haystack": "reference",
    }
    return parse_settings({**start, **values}, "test")
