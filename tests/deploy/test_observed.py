"""A real Prometheus scrapes a real gateway and a scripted engine: queries give data, alerts fire, numbers by hand."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploy.conftest import DEPLOYED, free_port
from tests.deploy.test_dashboards import PANELS
from tests.deploy.test_rules import alerts
from tests.gateway.scripted_engine import SUMMARY, Script, chat_answer, chat_events, wait_until
from tests.gateway.test_curve import CURVE, point

if TYPE_CHECKING:
    from pathlib import Path

    from tests.deploy.conftest import Prometheus
    from tests.gateway.conftest import RunningGateway

# Dense takes 20 ms a token at 2500 tokens.
POINTS = [point("dense", 500, 1, 4.0), point("dense", 4500, 1, 36.0)]
# 40 steps around 2500 tokens: dense they take 800 ms.
GOOD = {
    **SUMMARY,
    "context_tokens": 2520,
    "decode_steps": 40,
    "sparse_steps": 40,
    "attended_tokens": 30,
    "dense_tokens": 100,
    "attended_fraction": 0.3,
    "recall": 0.97,
    "decode_seconds": 0.2,
    "engine_seconds": 0.25,
}
DENSE = {**GOOD, "budget": "dense", "mode": None, "sparse_steps": 0, "recall": None, "decode_seconds": 0.8}
BAD = {**GOOD, "recall": 0.5, "dense_fallback": "budget_covers_context", "decode_seconds": 1.6}
POLICY = DEPLOYED.parent / "policy.example.yaml"
COUNTED = "sum(lychee_requests_total)"
# There is no router here, and nobody asks about a document: tests/gateway has both, and the values.
ELSEWHERE = {
    "engine.json Replicas: {{replica}} up",
    "engine.json Replicas: {{replica}} answers",
    "sparsity.json Time to read a document: p50",
    "sparsity.json Time to read a document: p95",
}


def curve_file(folder: Path, plan: str = "00") -> Path:
    path = folder / f"curve-{plan}.json"
    path.write_text(json.dumps({**CURVE, "plan": {"name": "built-in", "sha256": plan}, "points": POINTS}))
    return path


def host(url: str) -> str:
    return url.removeprefix("http://")


def ask(gateway: RunningGateway, engine: Any, *summaries: dict[str, Any] | None, pause: float = 0.0) -> int:
    """Ask for each summary once streamed and once not; return how many requests that were."""
    for summary in summaries:
        engine.script = Script(answer=chat_answer(summary), events=list(chat_events(summary)), pause=pause)
        assert gateway.chat(lychee={"budget": 512}).status_code == 200
        assert gateway.chat(stream=True, lychee={"budget": 512}).status_code == 200
    return 2 * len(summaries)


def shown(expression: str) -> str:
    """A dashboard's query, as Grafana sends it for a short range."""
    return expression.replace("$__rate_interval", "1m").replace("$__range", "1m")


def without_data(prometheus: Prometheus) -> set[str]:
    return {
        f"{board} {panel['title']}: {target['legendFormat']}"
        for board, panel in PANELS
        for target in panel["targets"]
        if not prometheus.query(shown(target["expr"]))
    }


def test_a_healthy_service(start_prometheus, start_gateway, engine, running, tmp_path):
    gateway = start_gateway(curve_file=curve_file(tmp_path), policy_file=POLICY, max_concurrency=1)
    prometheus = start_prometheus(
        {"lychee-gateway": [host(gateway.server.url)], "lychee-engine": [host(running.server.url)]}
    )
    asked = 0
    for _ in range(3):  # a rate needs counts that rise from one scrape to the next
        asked += ask(gateway, engine, GOOD, DENSE)
        asked += queue_one(gateway, engine)
        prometheus.sees(COUNTED, asked)
    # 800 ms of dense decoding in 200 ms; dense answers take what the curve says
    wait_until(lambda: prometheus.value('lychee:speedup:ratio_rate5m{decoding="sparse"}') is not None, timeout=10)
    assert prometheus.value('lychee:speedup:ratio_rate5m{decoding="sparse"}') == pytest.approx(4)
    assert prometheus.value('lychee:speedup:ratio_rate5m{decoding="dense"}') == pytest.approx(1)
    assert prometheus.value('lychee:recall:ratio_rate5m{context="1k-4k"}') == pytest.approx(0.97)
    assert prometheus.value("lychee:success:ratio_rate5m") == pytest.approx(1)
    panel = {panel["title"]: shown(panel["targets"][0]["expr"]) for board, panel in PANELS if board == "overview.json"}
    assert prometheus.value(panel["Speedup"]) == pytest.approx(4)
    assert prometheus.value(panel["KV entries read"]) == pytest.approx(0.3)
    assert prometheus.value(panel["Engines in service"]) == 1
    assert prometheus.firing() == set()
    assert without_data(prometheus) == {
        "slo.json Firing: {{alertname}}",
        "slo.json Pending and firing: {{alertname}} {{alertstate}}",
        *ELSEWHERE,
    }


def test_a_service_in_trouble(start_prometheus, start_gateway, engine, running, tmp_path):
    """Every alert fires, and every panel has something to show."""
    good_curve, other_curve = curve_file(tmp_path), curve_file(tmp_path, plan="11")
    gateway = start_gateway(curve_file=good_curve, policy_file=POLICY)
    narrow = start_gateway(curve_file=other_curve, max_concurrency=1, max_queue=0)
    prometheus = start_prometheus(
        {
            "lychee-gateway": [host(gateway.server.url), host(narrow.server.url), f"127.0.0.1:{free_port()}"],
            "lychee-engine": [host(running.server.url)],
        },
        {"time_to_first_token_seconds": 0.05},
    )
    asked = 0
    for _ in range(2):
        asked += ask(gateway, engine, BAD, None, pause=0.12)
        asked += refuse_one(narrow, engine)
        prometheus.sees(COUNTED, asked)
    missing = without_data(prometheus)
    running.server.kill()
    wait_until(lambda: not gateway.ready())
    for _ in range(2):
        assert gateway.chat().status_code == 503
        asked += 1
        prometheus.sees(COUNTED, asked)
    wait_until(lambda: prometheus.firing() == set(alerts()), timeout=15)
    # What the engine shows itself has ended with it; dense answers, and requests in line, there were none.
    assert missing & without_data(prometheus) == {
        "overview.json Speedup over dense: dense answers",
        "overview.json Waits: gateway p95",
        *ELSEWHERE,
    }


def queue_one(gateway: RunningGateway, engine: Any) -> int:
    """Fill a gateway that takes one request at a time, and let another wait in line."""
    engine.script = Script(answer=chat_answer(GOOD), gate=threading.Event())
    wait_until(gateway.ready)  # a stalled machine may have missed a probe: it would be refused instead
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(gateway.chat), pool.submit(gateway.chat)]
        try:
            wait_until(lambda: gateway.value("lychee_requests_queued") == 1 or any(one.done() for one in answers))
        finally:
            engine.script.gate.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
    return 2


def refuse_one(gateway: RunningGateway, engine: Any) -> int:
    """Fill a gateway that takes one request at a time, and ask once more."""
    engine.script = Script(answer=chat_answer(GOOD), gate=threading.Event())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.chat)
        wait_until(lambda: gateway.value("lychee_requests_in_flight") == 1)
        assert gateway.chat().status_code == 429
        engine.script.gate.set()
        assert waiting.result().status_code == 200
    return 2
