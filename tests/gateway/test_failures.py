"""An engine that is away, dies, hangs or answers nonsense: nobody waits, everybody gets a readable error."""

from __future__ import annotations

import json
import threading

import httpx
import openai
import pytest

from tests.gateway.scripted_engine import DONE, Broken, Script, chat_events, wait_until

MESSAGES = [{"role": "user", "content": "hi"}]


def unavailable(reply, status=503, code="engine_unavailable"):
    assert reply.status_code == status
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, code)
    assert reply.headers.get("retry-after") == ("5" if status == 503 else None)
    return error["message"]


def last_events(content: bytes) -> tuple[dict, bytes]:
    *_, error, done = content.removesuffix(b"\n\n").split(b"\n\n")
    return json.loads(error.removeprefix(b"data: "))["error"], done + b"\n\n"


def test_no_engine_at_the_start(running, start_gateway):
    running.server.kill()
    gateway = start_gateway(wait=False)
    wait_until(lambda: "cannot be reached" in gateway.http.get("/readyz").text)
    for reply in (gateway.chat(), gateway.chat(stream=True), gateway.http.get("/v1/models")):
        assert "cannot be reached" in unavailable(reply)
    assert gateway.http.get("/livez").status_code == 200
    assert gateway.of_engine("lychee_engine_up") == 0
    running.server.start()
    wait_until(gateway.ready)
    assert gateway.chat().status_code == 200
    assert gateway.of_engine("lychee_engine_up") == 1
    assert gateway.of_engine("lychee_engine_restarts_seen_total") == 0


def test_engine_goes_and_comes_back(running, gateway):
    for times in (1, 2):
        running.server.kill()
        # At once, whether or not the monitor has looked since.
        assert "the engine" in unavailable(gateway.chat())
        assert gateway.http.get("/readyz").status_code == 503
        running.server.start()
        wait_until(gateway.ready)
        assert gateway.chat().status_code == 200
        assert gateway.of_engine("lychee_engine_restarts_seen_total") == times
    assert running.engine.tokens_generated == 3


def test_readiness_needs_a_token(running, start_gateway):
    running.engine.generate = 503
    gateway = start_gateway(wait=False)
    wait_until(lambda: "/health_generate answers 503" in gateway.http.get("/readyz").text)
    # between two looks at the engine the reason is that it is being asked
    wait_until(lambda: "/health_generate answers 503" in unavailable(gateway.chat()))
    running.engine.generate = 200
    wait_until(gateway.ready)
    asked, looks = running.engine.tokens_generated, running.engine.looks
    wait_until(lambda: running.engine.looks >= looks + 4)
    assert running.engine.tokens_generated == asked


def test_info_that_cannot_be_read_keeps_the_gateway_unready(running, start_gateway):
    running.engine.info = {"plan": {"name": "x", "method": "y", "heuristic": False}, "context_window": 9}
    gateway = start_gateway(wait=False)
    wait_until(lambda: "/lychee/info cannot be read at 'defaults'" in gateway.http.get("/readyz").text)


def test_a_busy_engine_stays_in_service(running, start_gateway):
    gateway = start_gateway(unhealthy_after=600)
    running.engine.health, looks = 503, running.engine.looks
    wait_until(lambda: running.engine.looks >= looks + 4)
    assert gateway.chat().status_code == 200


def test_a_sick_engine_does_not(running, start_gateway):
    gateway = start_gateway(unhealthy_after=0.2)
    running.engine.health = 503
    wait_until(lambda: not gateway.ready())
    assert "/health answers 503" in unavailable(gateway.chat())
    running.engine.health = 200
    wait_until(gateway.ready)
    assert gateway.of_engine("lychee_engine_restarts_seen_total") == 0


@pytest.mark.parametrize("events", [chat_events()[:3], [*chat_events()[:3], Broken()]], ids=["ends", "breaks"])
def test_stream_of_a_dying_engine_ends_with_an_error(gateway, engine, events):
    engine.script = Script(events=events)
    content = gateway.chat(stream=True).content
    assert content.startswith(b"".join(chat_events()[:3]))
    error, done = last_events(content)
    assert error["code"] == "engine_unavailable"
    assert done == DONE
    engine.script = Script()
    assert gateway.chat(stream=True).content.endswith(DONE)
    assert gateway.total("lychee_requests_total", route="/v1/chat/completions", status="503") == 1


def test_openai_client_sees_a_broken_stream_as_an_error(gateway, engine):
    engine.script = Script(events=[*chat_events()[:3], Broken()])
    stream = gateway.openai().chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="broke before the answer was complete"):
        list(stream)


def test_killed_engine_ends_streams_and_answers_at_once(running, gateway):
    running.engine.script = Script(events=[*chat_events()[:3], None], pause=0.02)
    outcomes: dict[bool, httpx.Response] = {}

    def ask(stream: bool) -> None:
        outcomes[stream] = gateway.chat(stream=stream)

    streaming = threading.Thread(target=ask, args=(True,))
    streaming.start()
    wait_until(lambda: gateway.value("lychee_time_to_first_token_seconds_count") == 1)
    running.engine.script = Script(gate=threading.Event())
    waiting = threading.Thread(target=ask, args=(False,))
    waiting.start()
    wait_until(lambda: len(running.engine.bodies) == 2)
    running.server.kill()
    streaming.join(60)
    waiting.join(60)
    assert last_events(outcomes[True].content)[1] == DONE
    assert "broke before the answer was complete" in unavailable(outcomes[False])
    wait_until(lambda: gateway.value("lychee_requests_in_flight") == 0)


def test_silent_streams_end(running, start_gateway):
    gateway = start_gateway(stream_idle_timeout=1.0)
    running.engine.script = Script(events=[*chat_events()[:2], None])
    begun = gateway.chat(stream=True)
    running.engine.script = Script(events=[None])
    silent = gateway.chat(stream=True)
    for reply in (begun, silent):
        error, done = last_events(reply.content)
        assert (error["code"], done) == ("engine_timeout", DONE)
    wait_until(lambda: len(running.engine.aborts) == 2)
    assert [rid for rid, _ in running.engine.aborts] == [body["rid"] for body in running.engine.bodies]


def test_silent_answers_end(running, start_gateway):
    gateway = start_gateway(response_timeout=1.0)
    running.engine.script = Script(pause=30)
    assert "silent" in unavailable(gateway.chat(), 504, "engine_timeout")
    wait_until(lambda: running.engine.aborts and running.engine.bodies)
    assert running.engine.aborts[0][0] == running.engine.bodies[0]["rid"]


@pytest.mark.parametrize("stream", [False, True])
def test_engine_errors(gateway, engine, stream):
    flat = {"object": "error", "message": "Internal server error: x", "type": "InternalServerError", "code": 500}
    engine.script = Script(status=500, answer=flat)
    assert unavailable(gateway.chat(stream=stream), 502, "engine_error") == "Internal server error: x"
    engine.script = Script(status=503, answer={"object": "error", "message": "The request queue is full."})
    assert unavailable(gateway.chat(stream=stream)) == "The request queue is full."
    assert gateway.ready()


def test_answers_that_are_no_answers(gateway, engine):
    for answer in (b"", b"[]", b"<html>"):
        engine.script = Script(answer=answer)
        assert "not a JSON object" in unavailable(gateway.chat(), 502, "engine_error")
    engine.script = Script(answer=Broken())
    assert gateway.chat().status_code == 502


def test_error_that_the_engine_writes_into_a_stream_is_passed(gateway, engine):
    error = b'data: {"error": {"object": "error", "message": "KV pool is full", "code": 503}}\n\n'
    engine.script = Script(events=[*chat_events()[:2], error, DONE])
    assert gateway.chat(stream=True).content == b"".join([*chat_events()[:2], error, DONE])
    assert gateway.total("lychee_requests_total", route="/v1/chat/completions", status="503") == 1
    assert gateway.total("lychee_request_latency_seconds_count") == 0


def test_a_field_error_that_is_null_is_no_error(gateway, engine):
    null = chat_events()[1].replace(b'"choices"', b'"error": null, "choices"')
    engine.script = Script(events=[chat_events()[0], null, *chat_events()[2:]])
    assert null in gateway.chat(stream=True).content
    assert gateway.total("lychee_requests_total", route="/v1/chat/completions", status="200") == 1
    assert gateway.total("lychee_request_latency_seconds_count") == 1


def test_a_wrong_key_of_the_gateways_own_is_not_the_clients(gateway, engine):
    engine.script = Script(status=401, answer={"error": "Unauthorized"})
    reply = gateway.chat()
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "engine_error")
    assert "www-authenticate" not in reply.headers


def test_a_mistake_of_the_gateways_in_a_stream_counts_as_one(gateway, monkeypatch):
    def mistake(*_):
        raise RuntimeError("a mistake")

    monkeypatch.setattr("lychee_server.tally.AnswerTally.event", mistake)
    with pytest.raises(httpx.RemoteProtocolError):
        gateway.chat(stream=True)
    assert gateway.total("lychee_requests_total", route="/v1/chat/completions", status="500") == 1
    assert gateway.value("lychee_requests_total", route="/v1/chat/completions", status="200") == 0
