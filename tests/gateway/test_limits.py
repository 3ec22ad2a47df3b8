"""How much at one time, and how it ends at a shutdown."""

from __future__ import annotations

import json
import threading
import time

import httpx
import pytest

from tests.gateway.scripted_engine import DONE, Script, chat_events, wait_until


def in_thread(work) -> tuple[threading.Thread, list[httpx.Response]]:
    results: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    return thread, results


def test_more_than_max_concurrency_is_refused_and_comes_through_later(running, start_gateway):
    gateway = start_gateway(max_concurrency=2, max_queue=0, retry_after=7)
    gate = threading.Event()
    running.engine.script = Script(gate=gate)
    first, answers = in_thread(gateway.chat)
    second, streams = in_thread(lambda: gateway.chat(stream=True))
    wait_until(lambda: len(running.engine.bodies) == 2)
    for stream in (False, True):
        refused = gateway.chat(stream=stream)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "7"
        assert refused.json()["error"] == {
            "message": "2 requests are in flight already; try again later",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    assert gateway.ready()  # probes need no place
    gate.set()
    first.join(60)
    second.join(60)
    assert answers[0].status_code == 200
    assert streams[0].content.endswith(DONE)
    assert gateway.chat().status_code == 200
    assert running.engine.aborts == []
    assert gateway.total("lychee_requests_total", route="/v1/chat/completions", status="429") == 2


def test_shutdown_lets_requests_finish(running, start_gateway):
    gateway = start_gateway(drain_timeout=600)
    gate = threading.Event()
    running.engine.script = Script(gate=gate)
    first, answers = in_thread(gateway.chat)
    second, streams = in_thread(lambda: gateway.chat(stream=True))
    wait_until(lambda: len(running.engine.bodies) == 2)
    with httpx.Client(base_url=gateway.server.url) as other:
        gateway.server.server.should_exit = True
        wait_until(lambda: refuses(other))
        gate.set()
        first.join(60)
        second.join(60)
    gateway.server.join()
    assert answers[0].json()["choices"]
    assert streams[0].content.endswith(DONE)
    assert "error" not in streams[0].text


def test_shutdown_ends_what_does_not_finish(running, start_gateway):
    gateway = start_gateway(drain_timeout=0.5)
    running.engine.script = Script(events=[*chat_events()[:3], None], gate=threading.Event())
    first, answers = in_thread(gateway.chat)
    second, streams = in_thread(lambda: gateway.chat(stream=True))
    wait_until(lambda: len(running.engine.bodies) == 2)
    wait_until(lambda: gateway.value("lychee_time_to_first_token_seconds_count") == 1)
    begin = time.monotonic()
    gateway.server.server.should_exit = True
    first.join(60)
    second.join(60)
    gateway.server.join()
    assert time.monotonic() - begin > 0.4
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "shutting_down"
    *_, error, done = streams[0].content.removesuffix(b"\n\n").split(b"\n\n")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "shutting_down"
    assert done + b"\n\n" == DONE
    assert {rid for rid, _ in running.engine.aborts} == {body["rid"] for body in running.engine.bodies}


def test_not_ready_while_shutting_down(running, start_gateway):
    gateway = start_gateway(drain_timeout=600)
    gate = threading.Event()
    running.engine.script = Script(gate=gate)
    with httpx.Client(base_url=gateway.server.url) as probe:
        thread, _ = in_thread(gateway.chat)
        wait_until(lambda: running.engine.bodies)
        # A probe that was already being sent when the shutdown began.
        app = gateway.server.server.config.app
        app.state.gateway.drain.begun = True
        reply = probe.get("/readyz")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")
        gate.set()
        thread.join(60)


def refuses(client: httpx.Client) -> bool:
    try:
        client.get("/livez")
    except httpx.TransportError:
        return True
    return False


@pytest.mark.parametrize("stream", [False, True])
def test_requests_in_flight_are_counted(gateway, engine, stream):
    gate = threading.Event()
    engine.script = Script(gate=gate)
    thread, _ = in_thread(lambda: gateway.chat(stream=stream))
    wait_until(lambda: gateway.value("lychee_requests_in_flight") == 1)
    gate.set()
    thread.join(60)
    wait_until(lambda: gateway.value("lychee_requests_in_flight") == 0)
