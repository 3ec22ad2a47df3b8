"""The tables of server/README.md are held to the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from lychee_server.app import create_app
from lychee_server.metrics import GatewayMetrics
from lychee_server.schemas import EngineSummary, PlanInfo
from lychee_server.settings import Settings
from tests.gateway.scripted_engine import SUMMARY

README = Path(__file__).parents[2] / "server" / "README.md"


def table(heading: str) -> list[list[str]]:
    """Return the rows of the first table under a heading, without code marks."""
    section = re.split(r"^## ", README.read_text(), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{heading}\n")]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def default_of(value: object) -> str:
    if value in (None, ()):
        return "none"
    shown = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{shown}`"


def test_endpoints():
    served = {
        (method.upper(), path)
        for path, operations in create_app(Settings()).openapi()["paths"].items()
        for method in operations
    }
    assert {(method, path.strip("`")) for method, path, _ in table("Endpoints")} == {*served, ("GET", "/docs")}


def test_settings():
    assert table("Settings") == [
        [f"`{name}`", default_of(field.default), field.description] for name, field in Settings.model_fields.items()
    ]


def everything_happened() -> CollectorRegistry:
    """Return a registry on which every event was reported once, so that every label shows."""
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    metrics.request_counted("other", 200)
    metrics.summary(EngineSummary(**{**SUMMARY, "dense_fallback": "dense_below"}), "default")
    metrics.speedup(EngineSummary(**SUMMARY), 1.0)
    metrics.curve_loaded("a", "b", "c", "d")
    metrics.curve_compared("e", ["plan"])
    metrics.policy_loaded(["rule"])
    metrics.summary(EngineSummary(**SUMMARY), "rule", "rule")
    metrics.engine_ready("e:1", PlanInfo(name="a", method="b", heuristic=False))
    metrics.refused("queue_full")
    metrics.engine_load("e:1", 0)
    metrics.engine_breaker("e:1", open=False)
    metrics.engine_restarted("e:1")
    metrics.engine_retried("e:1")
    metrics.replica_seen("e:1", "r:1", up=True)
    return registry


def test_metrics():
    exported = []
    for family in everything_happened().collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {key for sample in family.samples for key in sample.labels} - {"le"}
        shown = ", ".join(f"`{label}`" for label in sorted(labels))
        exported.append([f"`{name}`", family.type, shown, family.documentation])
    assert table("Metrics") == exported


PACKAGE = README.parent / "lychee_server"
MODULES = [path for folder in (PACKAGE, PACKAGE / "policy") for path in folder.glob("*.py")]


@pytest.mark.parametrize("name", sorted(str(path.relative_to(PACKAGE)) for path in MODULES))
def test_every_module_is_on_the_map(name):
    assert name.endswith("__init__.py") or f"`{name}`" in README.read_text().split("## Modules")[1]
