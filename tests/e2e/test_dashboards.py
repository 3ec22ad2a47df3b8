"""What the dashboards ask of the engine, and of the engine's account of time, is there in the real one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e.deployment import wait_for
from tests.gateway import sglang_metrics

if TYPE_CHECKING:
    from tests.e2e.deployment import Deployment

pytestmark = pytest.mark.engine


def test_the_engine_shows_every_metric_of_the_dashboards(deployment: Deployment) -> None:
    # SGLang takes the time between tokens of streams only.
    answer = deployment.ask("Count to twenty.", max_tokens=24, ignore_eos=True, stream=True)
    assert answer.status_code == 200, answer.text
    wanted = {*sglang_metrics.GAUGES, *sglang_metrics.COUNTERS, *sglang_metrics.HISTOGRAMS}

    def missing() -> set[str]:
        text = httpx.get(f"{deployment.engine_url}/metrics", timeout=30, trust_env=False).text
        return {name for name in wanted if not re.search(rf"^{name}(_count)?{{", text, flags=re.MULTILINE)}

    wait_for(lambda: not missing(), "all metrics at the engine", 60)


def test_the_engines_clock_reaches_the_gateways_metrics(deployment: Deployment) -> None:
    """Its own time is part of the request's, so what is left for the gateway is small and not negative."""
    overhead = "lychee_gateway_overhead_seconds"
    before = deployment.gateway_samples()
    assert deployment.ask("Count to twenty.", max_tokens=24, ignore_eos=True).status_code == 200
    wait_for(
        lambda: deployment.gateway_samples()[f"{overhead}_count"] == before[f"{overhead}_count"] + 1,
        "the answer's overhead",
        30,
    )
    after = deployment.gateway_samples()
    latency = "lychee_request_latency_seconds_sum"
    assert 0 < after[f"{overhead}_sum"] - before[f"{overhead}_sum"] < after[latency] - before[latency]
