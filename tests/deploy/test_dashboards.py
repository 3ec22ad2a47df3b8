"""The dashboards: what is committed is what is built, and every query names metrics that exist."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.dashboards import slo
from deploy.dashboards.__main__ import FOLDER, render
from lychee_server.buckets import FIRST_TOKEN_SECONDS, TOKEN_GAP_SECONDS
from tests.gateway import sglang_metrics
from tests.gateway.test_readme import everything_happened

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules" / "lychee.yml"
BOARDS = {name: json.loads(text) for name, text in render().items()}
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in board["panels"] if panel["type"] != "row"]
NAMES = re.compile(r"\b(?:sglang:|lychee[_:])[a-z0-9_:]+")
SUFFIXES = re.compile(r"_(bucket|sum|count)$")


def expressions() -> list[str]:
    return [target["expr"] for _, panel in PANELS for target in panel["targets"]]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def exported() -> set[str]:
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in everything_happened().collect()
    }


def test_what_is_committed_is_what_is_built():
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert committed == render(), "run `make dashboards`"


@pytest.mark.parametrize("expression", [*expressions(), *(rule["expr"] for rule in rules())])
def test_every_metric_in_a_query_is_exported(expression):
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    sglang = {*sglang_metrics.GAUGES, *sglang_metrics.COUNTERS, *sglang_metrics.HISTOGRAMS}
    known = exported() | recorded | sglang
    for name in NAMES.findall(expression):
        assert name in known or SUFFIXES.sub("", name) in known


@pytest.mark.parametrize("name", sorted(exported()))
def test_every_metric_of_the_gateway_is_looked_at(name):
    queries = "\n".join([*expressions(), *(rule["expr"] for rule in rules())])
    assert re.search(rf"\b{name}(_bucket|_sum|_count)?\b", queries)


def test_sglang_has_these_metrics_with_these_types():
    """Read off the source of the installed SGLang: importing it takes long, and it registers only what it runs."""
    found = importlib.util.find_spec("sglang")
    assert found is not None
    assert found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "srt" / "observability"
    source = "\n".join(path.read_text() for path in folder.glob("*.py"))
    kinds = dict.fromkeys(sglang_metrics.GAUGES, "Gauge")
    kinds |= dict.fromkeys(sglang_metrics.COUNTERS, "Counter")
    kinds |= dict.fromkeys(sglang_metrics.HISTOGRAMS, "Histogram")
    for name, kind in kinds.items():
        assert re.search(rf'{kind}\(\s*name="{name}"', source), f"{name} is no {kind} of this SGLang"


def test_panels_are_complete():
    for board in BOARDS.values():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        assert board["uid"].startswith("lychee-")
    for name, panel in PANELS:
        assert panel["title"], name
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_panels_do_not_overlap():
    for board in BOARDS.values():
        taken = [
            (x, y)
            for panel in board["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(taken) == len(set(taken))


def test_objectives_are_those_of_the_rules_and_bounds_of_buckets():
    """A share below an objective can only be read off a bucket that ends there."""
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    assert recorded["lychee:objective:inter_token_latency_seconds"] == f"vector({slo.TOKEN_SECONDS:g})"
    assert recorded["lychee:objective:time_to_first_token_seconds"] == f"vector({slo.FIRST_TOKEN_SECONDS:g})"
    assert recorded["lychee:objective:recall_ratio"] == f"vector({slo.RECALL:g})"
    assert slo.TOKEN_SECONDS in TOKEN_GAP_SECONDS
    assert slo.FIRST_TOKEN_SECONDS in FIRST_TOKEN_SECONDS
