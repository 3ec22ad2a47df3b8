"""SIGKILL to the engine under load: no client hangs, nothing is left of the old engine, service comes back."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.e2e.deployment import START_SECONDS, chat, total, wait_for

if TYPE_CHECKING:
    from tests.e2e.deployment import Deployment

pytestmark = pytest.mark.engine

STREAMS = 8
END_SECONDS = 60.0
RESTART = r"^the engine .*; starting it again in \d+ s"
READY_AGAIN = r"^ready again after \d+ s$"


class OpenStream:
    """One long stream: when it got its first event, and how it ended."""

    def __init__(self, deployment: Deployment, number: int) -> None:
        self.flowing = threading.Event()
        self.status = 0
        self.events: list[str] = []
        self._deployment = deployment
        self._body = chat(f"Tell story number {number}.", max_tokens=4000, ignore_eos=True, stream=True)

    def run(self) -> None:
        with (
            httpx.Client(base_url=self._deployment.url, timeout=120, trust_env=False) as http,
            http.stream("POST", "/v1/chat/completions", json=self._body) as answer,
        ):
            self.status = answer.status_code
            for line in answer.iter_lines():
                if line:
                    self.events.append(line.removeprefix("data: "))
                    self.flowing.set()


def test_a_killed_engine_ends_every_stream_and_comes_back(deployment: Deployment) -> None:
    streams = [OpenStream(deployment, number) for number in range(STREAMS)]
    old = deployment.engine_family()
    gateway = deployment.gateway()
    with ThreadPoolExecutor(STREAMS) as pool:
        runs = [pool.submit(stream.run) for stream in streams]
        assert all(stream.flowing.wait(120) for stream in streams)
        deployment.engine().kill()
        for run in runs:
            run.result(timeout=END_SECONDS)
    for stream in streams:
        assert stream.status == 200
        assert stream.events[-1] == "[DONE]"
        assert json.loads(stream.events[-2])["error"]["code"] == "engine_unavailable"

    refused = deployment.ask("Anybody there?")
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "engine_unavailable"
    assert int(refused.headers["retry-after"]) >= 1
    assert deployment.http.get("/readyz").status_code == 503
    assert deployment.http.get("/livez").status_code == 200

    _, left = psutil.wait_procs(old, timeout=END_SECONDS)
    assert left == []
    deployment.wait_for_line(READY_AGAIN, START_SECONDS)
    assert deployment.http.get("/readyz").status_code == 200
    answer = deployment.ask("What is the capital of France?")
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    after = deployment.gateway_samples()
    assert deployment.gateway() == gateway  # psutil: the same number and the same time of birth
    assert total(after, "lychee_engine_restarts_seen_total") == 1
    assert old.isdisjoint(deployment.engine_family())
    wait_for(lambda: deployment.gateway_samples()["lychee_requests_in_flight"] == 0, "no request is stuck", END_SECONDS)


def test_a_killed_scheduler_takes_its_engine_along_and_both_come_back(deployment: Deployment) -> None:
    """What runs out of memory is the scheduler: SGLang's main process is left, and answers nobody."""
    said = deployment.output.read_text()
    restarts, ready = (len(re.findall(line, said, re.MULTILINE)) for line in (RESTART, READY_AGAIN))
    scheduler = next(process for process in deployment.engine_family() if "scheduler" in process.name())
    scheduler.kill()
    deployment.wait_for_line(RESTART, 60, times=restarts + 1)
    wait_for(lambda: deployment.http.get("/readyz").status_code == 503, "/readyz says so", END_SECONDS)
    assert deployment.http.get("/livez").status_code == 200
    deployment.wait_for_line(READY_AGAIN, START_SECONDS, times=ready + 1)
    assert "Paris" in deployment.ask("What is the capital of France?").json()["choices"][0]["message"]["content"]
