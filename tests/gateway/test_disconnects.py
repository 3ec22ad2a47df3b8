"""A client that goes away frees its place in the engine at once."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from tests.gateway.scripted_engine import DONE, Script, chat_events, wait_until

MESSAGES = [{"role": "user", "content": "hi"}]


def send(gateway, path="/v1/chat/completions", **body) -> socket.socket:
    """Send a request over a bare socket, so that the test decides when the connection closes."""
    content = json.dumps({"messages": MESSAGES, "prompt": "x", **body}).encode()
    connection = socket.create_connection(("127.0.0.1", gateway.server.port))
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + content)
    return connection


def left(gateway) -> float:
    return gateway.total("lychee_client_disconnects_total")


def test_leaving_a_running_stream(gateway, engine):
    engine.script = Script(events=[*chat_events()[:3], None])
    with send(gateway, stream=True) as connection:
        while b"H" not in connection.recv(4096):
            pass
    wait_until(lambda: engine.aborts and engine.streams_closed)
    assert engine.aborts[0][0] == engine.bodies[0]["rid"]
    assert left(gateway) == 1
    wait_until(lambda: gateway.value("lychee_requests_in_flight") == 0)
    assert gateway.total("lychee_requests_total", route="/v1/chat/completions", status="499") == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream before its first byte"])
def test_leaving_before_the_answer(gateway, engine, stream):
    engine.script = Script(pause=30)
    with send(gateway, stream=stream):
        wait_until(lambda: engine.bodies)
    wait_until(lambda: engine.aborts)
    assert engine.aborts[0][0] == engine.bodies[0]["rid"]
    wait_until(lambda: gateway.value("lychee_requests_in_flight") == 0)
    assert left(gateway) == 1


@pytest.mark.parametrize(
    ("prompt", "suffixes"),
    [(["a", "b"], ["_0", "_1"]), ([[1, 2], [3]], ["_0", "_1"]), ([1, 2, 3], [""]), ("abc", [""]), (["a"], [""])],
    ids=str,
)
def test_every_prompt_of_a_batch_is_aborted_by_the_name_sglang_gives_it(gateway, engine, prompt, suffixes):
    engine.script = Script(pause=30)
    with send(gateway, "/v1/completions", prompt=prompt, n=2):
        wait_until(lambda: engine.bodies)
    wait_until(lambda: gateway.value("lychee_requests_in_flight") == 0)
    assert [name for name, _ in engine.aborts] == [engine.bodies[0]["rid"] + suffix for suffix in suffixes]


def test_an_abort_that_the_engine_refuses_is_told(gateway, engine, caplog):
    """With a key for administrators SGLang takes none from the gateway; the work went on, and nobody knew why."""
    engine.script, engine.abort_status = Script(pause=30), 401
    with send(gateway):
        wait_until(lambda: engine.bodies)
    wait_until(lambda: "abort was not delivered" in caplog.text)
    (told,) = [record for record in caplog.records if record.message == "abort was not delivered"]
    assert (told.rid, told.error) == (engine.bodies[0]["rid"], "its /abort_request answers 401")


def test_leaving_while_the_body_is_sent(gateway, engine):
    with socket.create_connection(("127.0.0.1", gateway.server.port)) as connection:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(head + b"content-length: 1000\r\n\r\n{")
        wait_until(lambda: gateway.value("lychee_requests_in_flight") == 1)
    wait_until(lambda: gateway.value("lychee_requests_in_flight") == 0)
    assert gateway.total("lychee_requests_total", route="/v1/chat/completions", status="499") == 1
    assert left(gateway) == 1
    assert engine.bodies == []


def test_finished_requests_are_not_aborted(gateway, engine):
    assert gateway.chat().status_code == 200
    assert gateway.chat(stream=True).content.endswith(DONE)
    assert engine.aborts == []
    assert left(gateway) == 0


@pytest.mark.parametrize("behind", [[], [None]], ids=["the engine ends", "the engine does not end"])
def test_leaving_when_all_was_said_is_no_leaving(gateway, engine, behind):
    """Clients close at [DONE], before the engine's connection has come to its end: a router passes that on later."""
    engine.script = Script(events=[*chat_events(), *behind])
    for number in range(1, 6):
        with send(gateway, stream=True) as connection:
            raw = b""
            while DONE not in raw:
                raw += connection.recv(4096)
        # counted before it was there to be read
        assert gateway.total("lychee_requests_total", route="/v1/chat/completions", status="200") == number
        assert gateway.value("lychee_generation_tokens_total") == 4 * number
        assert gateway.value("lychee_request_latency_seconds_count") == number
    wait_until(lambda: gateway.value("lychee_requests_in_flight") == 0)
    assert left(gateway) == 0
    assert engine.aborts == []


def test_client_that_stops_reading_is_let_go(running, start_gateway):
    gateway = start_gateway(stream_idle_timeout=1.5)
    flood = chat_events()[1] * 4000  # more than all socket buffers on the way hold
    running.engine.script = Script(events=[flood] * 40)
    with send(gateway, stream=True):
        wait_until(lambda: running.engine.aborts)
    assert left(gateway) == 1


def test_a_place_is_free_again_when_its_client_has_left(running, start_gateway):
    gateway = start_gateway(max_concurrency=1, max_queue=0)
    running.engine.script = Script(gate=threading.Event())
    with send(gateway):
        wait_until(lambda: running.engine.bodies)
        assert gateway.chat().status_code == 429
    wait_until(lambda: gateway.value("lychee_requests_in_flight") == 0)
    running.engine.script = Script()
    assert gateway.chat().status_code == 200
