"""deploy/README.md is held to the rules, the dashboards and the compose file."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.dashboards.__main__ import render
from tests.deploy.test_compose import SERVICES, STAGES
from tests.deploy.test_rules import alerts

README = (Path(__file__).parents[2] / "deploy" / "README.md").read_text()


def rows(heading: str) -> list[list[str]]:
    (section,) = [part for part in re.split(r"^## ", README, flags=re.MULTILINE) if part.startswith(heading)]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_alerts():
    assert [row[:3] for row in rows("Alerts")] == [
        [f"`{name}`", rule["labels"]["severity"], rule["for"]] for name, rule in alerts().items()
    ]


def test_dashboards():
    assert {f"{row[0]}.json" for row in rows("Dashboards")} == set(render())


def test_images_and_addresses():
    targets = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    shown = set(re.findall(r"^\| `lychee-\S+` \| `([a-z-]+)` \|", README, flags=re.MULTILINE))
    assert shown == targets
    assert targets <= set(STAGES)
    published = {port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", [])}
    assert set(re.findall(r"^\| `(127\.0\.0\.1:\d+)`", README, flags=re.MULTILINE)) == published


def test_links_lead_somewhere():
    folder = Path(__file__).parents[2] / "deploy"
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (folder / target).exists(), target
