"""Live speedup against a curve of five points; expected sums by hand."""

from __future__ import annotations

import json
import logging

import pytest
from prometheus_client import CollectorRegistry

from lychee_server.buckets import context_bucket
from lychee_server.metrics import GatewayMetrics
from tests.gateway.scripted_engine import INFO, SUMMARY, Script, chat_answer, wait_until
from tests.gateway.test_curve import CURVE, point
from tests.gateway.test_memory import READ

POINTS = [
    point("dense", 500, 1, 10.0),
    point("dense", 4500, 1, 50.0),
    point("dense", 500, 3, 20.0),
    point("dense", 4500, 3, 140.0),
    point(512, 4500, 1, 8.0),
]
# 40 steps up to a context of 2520: the middle is 2500. At a batch of 2 dense takes (30 + 80) / 2 = 55 ms a token.
SPARSE = {
    **SUMMARY,
    "context_tokens": 2520,
    "decode_steps": 40,
    "sparse_steps": 40,
    "mean_batch": 2.0,
    "decode_seconds": 0.5,
}
# Two choices of 20 steps: 2490 is the middle of each; at a batch of 1 dense takes 29.9 ms.
DENSE = {
    **SPARSE,
    "context_tokens": 2500,
    "sparse_steps": 0,
    "mean_batch": 1.0,
    "decode_seconds": 1.25,
}


@pytest.fixture
def curve_file(tmp_path):
    path = tmp_path / "curve.json"
    path.write_text(json.dumps({**CURVE, "points": POINTS}))
    return path


@pytest.fixture
def with_curve(start_gateway, curve_file):
    return start_gateway(curve_file=curve_file)


def test_sums_by_hand(with_curve, engine):
    engine.script = Script(answer=chat_answer(SPARSE))
    with_curve.chat()
    with_curve.chat()
    engine.script = Script(answer=chat_answer(DENSE))
    with_curve.chat(n=2)
    value = with_curve.total
    where = {"context": "1k-4k"}
    assert value("lychee_speedup_dense_seconds_total", decoding="sparse", **where) == pytest.approx(2 * 40 * 0.055)
    assert value("lychee_speedup_live_seconds_total", decoding="sparse", **where) == pytest.approx(2 * 0.5)
    assert value("lychee_speedup_dense_seconds_total", decoding="dense", **where) == pytest.approx(40 * 0.0299)
    assert value("lychee_speedup_live_seconds_total", decoding="dense", **where) == pytest.approx(1.25)
    curve = {"model": "tiny", "plan": "built-in", "device": "a CPU, 2 cores", "date": "2026-11-22"}
    assert value("lychee_speed_curve_info", **curve) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decode_seconds": None}, "not_timed"),
        ({"mean_batch": None}, "not_timed"),
        ({"decode_steps": 0, "decode_seconds": None}, "not_timed"),
        ({"context_tokens": 7000}, "outside_curve"),
        ({"mean_batch": 4.0}, "outside_curve"),
        ({"policy": "quest"}, "other_policy"),
        ({"memory": READ}, "not_timed"),
    ],
)
def test_answers_that_cannot_be_held_against_the_curve(with_curve, engine, change, reason):
    engine.script = Script(answer=chat_answer({**SPARSE, **change}))
    with_curve.chat()
    assert with_curve.total("lychee_speedup_uncounted_total", reason=reason) == 1
    assert with_curve.total("lychee_speedup_live_seconds_total", decoding="sparse", context="1k-4k") == 0


def test_a_curve_of_another_engine_is_warned_of_and_not_used(start_gateway, curve_file, engine, running, caplog):
    engine.info = {**INFO, "plan": {**INFO["plan"], "sha256": "11"}}
    with caplog.at_level(logging.WARNING, logger="lychee_server.speed"):
        gateway = start_gateway(curve_file=curve_file)
    assert caplog.records[-1].other == "plan"
    name = running.server.url.removeprefix("http://")
    assert gateway.value("lychee_speed_curve_mismatch", engine=name, field="plan") == 1
    engine.script = Script(answer=chat_answer(SPARSE))
    gateway.chat()
    assert gateway.total("lychee_speedup_uncounted_total", reason="other_engine") == 1
    # The engine is started again, with the plan that was measured
    running.server.kill()
    wait_until(lambda: not gateway.ready())
    engine.info = INFO
    running.server.start()
    wait_until(gateway.ready)
    assert gateway.value("lychee_speed_curve_mismatch", engine=name, field="plan") == 0
    gateway.chat()
    assert gateway.total("lychee_speedup_live_seconds_total", decoding="sparse", context="1k-4k") == 0.5


def test_overhead_is_what_the_engine_did_not_take(gateway, engine):
    """The engine pauses for a tenth of a second and accounts for 70 ms of it."""
    engine.script = Script(answer=chat_answer({**SUMMARY, "engine_seconds": 0.07}), pause=0.1)
    gateway.chat()
    assert gateway.total("lychee_gateway_overhead_seconds_count") == 1
    assert 0.03 <= gateway.total("lychee_gateway_overhead_seconds_sum") < 1


def test_overhead_of_a_stream(gateway, engine):
    gateway.chat(stream=True)
    assert gateway.total("lychee_gateway_overhead_seconds_count") == 1
    engine.script = Script(answer=chat_answer({**SUMMARY, "engine_seconds": None}))
    gateway.chat()
    assert gateway.total("lychee_gateway_overhead_seconds_count") == 1


def test_engines_that_give_no_times(gateway, engine):
    old = {key: value for key, value in SUMMARY.items() if key not in ("mean_batch", "decode_seconds")}
    engine.script = Script(answer=chat_answer(old))
    assert gateway.chat().json()["lychee"]["context_tokens"] == 1004


@pytest.mark.parametrize(
    ("tokens", "label"), [(1, "0-1k"), (1024, "0-1k"), (1025, "1k-4k"), (262_144, "64k-256k"), (262_145, "256k+")]
)
def test_context_labels(tokens, label):
    assert context_bucket(tokens) == label


def test_a_changed_engine_replaces_what_was_shown():
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    metrics.curve_compared("a", ["plan", "model"])
    metrics.curve_compared("b", ["plan"])
    metrics.curve_compared("a", ["device"])
    shown = [s.labels for f in registry.collect() if f.name == "lychee_speed_curve_mismatch" for s in f.samples]
    assert shown == [{"engine": "b", "field": "plan"}, {"engine": "a", "field": "device"}]
