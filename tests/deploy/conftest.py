"""A real Prometheus, with the configuration and the rules that are deployed, on a quicker clock."""

from __future__ import annotations

import contextlib
import math
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.gateway.conftest import engine, running, start_gateway
from tests.gateway.scripted_engine import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["engine", "running", "start_gateway"]  # the gateway's own fixtures, for pytest to find

DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus"


class Prometheus:
    """One running Prometheus."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10)

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values of an instant query; values that are no numbers are left out."""
        answer = self._http.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, answer.text
        series = answer.json()["data"]["result"]
        values = [(found["metric"], float(found["value"][1])) for found in series]
        return [(labels, value) for labels, value in values if math.isfinite(value)]

    def value(self, expression: str) -> float | None:
        found = self.query(expression)
        return found[0][1] if found else None

    def sees(self, expression: str, value: float) -> None:
        """Wait until an expression has a value."""
        wait_until(lambda: self.value(expression) == value, timeout=15)

    def firing(self) -> set[str]:
        alerts = self._http.get("/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def close(self) -> None:
        self._http.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quickened(rules: dict[str, Any], objectives: dict[str, float]) -> dict[str, Any]:
    """The deployed rules: alerts fire as soon as their condition holds, and some objectives are an operator's own."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "0s"
            name = rule.get("record", "").removeprefix("lychee:objective:")
            if name in objectives:
                rule["expr"] = f"vector({objectives[name]})"
    return rules


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[Callable[..., Prometheus]]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed: apt-get install --no-install-recommends prometheus")
    with contextlib.ExitStack() as stack:

        def start(targets: dict[str, list[str]], objectives: dict[str, float] | None = None) -> Prometheus:
            config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
            config["global"] = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"}
            config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] in targets]
            for job in config["scrape_configs"]:
                job.pop("dns_sd_configs", None)
                job["static_configs"] = [{"targets": targets[job["job_name"]]}]
            (tmp_path / "rules").mkdir()
            rules = yaml.safe_load((DEPLOYED / "rules" / "lychee.yml").read_text())
            (tmp_path / "rules" / "lychee.yml").write_text(yaml.safe_dump(quickened(rules, objectives or {})))
            (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
            port = free_port()
            command = [
                program,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ]
            process = stack.enter_context(subprocess.Popen(command, cwd=tmp_path))
            stack.callback(process.terminate)
            found = Prometheus(f"http://127.0.0.1:{port}")
            stack.callback(found.close)
            wait_until(found.ready, timeout=30)
            return found

        yield start
