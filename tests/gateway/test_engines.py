"""Several engines behind one gateway: who gets a request, what happens when one fails."""

from __future__ import annotations

import contextlib
import threading

import pytest

from lychee_server.body import HEAD_CHARACTERS, prompt_head
from lychee_server.breaker import Breaker
from tests.gateway.scripted_engine import DONE, Broken, Script, ScriptedEngine, ThreadedServer, chat_events, serving
from tests.gateway.scripted_engine import wait_until as eventually


@pytest.fixture
def two(start_gateway):
    """Start a gateway over two engines; gives it, the engines and their servers."""
    engines = [ScriptedEngine(), ScriptedEngine()]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving(ThreadedServer(engine.app))) for engine in engines]
        gateway = start_gateway(engine_urls=",".join(server.url for server in servers), breaker_pause=1.5)
        names = [f"127.0.0.1:{server.port}" for server in servers]
        eventually(lambda: all(gateway.value("lychee_engine_up", engine=name) for name in names))
        yield gateway, engines, servers


def ask(gateway, text="hi", **body):
    return gateway.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], **body})


def counts(engines) -> list[int]:
    return [len(engine.bodies) for engine in engines]


def test_one_prompt_stays_with_one_engine_and_many_prompts_use_both(two):
    gateway, engines, _ = two
    for _ in range(6):
        ask(gateway, "the same long document")
    assert sorted(counts(engines)) == [0, 6]
    for number in range(40):
        ask(gateway, f"document {number}")
    assert min(counts(engines)) > 5


def test_a_loaded_favourite_is_passed_over(two):
    gateway, engines, _ = two
    gate = threading.Event()
    for engine in engines:
        engine.script = Script(gate=gate)
    threads = [threading.Thread(target=ask, args=(gateway, "one prompt")) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: sum(counts(engines)) == 8)
    # With k requests in flight the favourite takes one more while it has fewer than ceil(1.25 * (k + 1) / 2).
    assert sorted(counts(engines)) == [3, 5]
    gate.set()
    for thread in threads:
        thread.join(60)


def test_a_killed_engine_is_replaced_without_an_error(two):
    gateway, engines, servers = two
    ask(gateway)
    favourite = counts(engines).index(1)
    servers[favourite].kill()
    for stream in (False, True):
        assert ask(gateway, stream=stream).status_code == 200
    assert counts(engines)[1 - favourite] == 2
    servers[favourite].start()
    name = f"127.0.0.1:{servers[favourite].port}"
    eventually(lambda: gateway.value("lychee_engine_up", engine=name) == 1)
    assert ask(gateway).status_code == 200
    assert counts(engines)[favourite] == 2
    assert gateway.value("lychee_engine_restarts_seen_total", engine=name) == 1


def test_an_engine_that_is_told_to_stop_gets_no_new_requests_while_there_is_another(two):
    """SGLang ends when nothing is left in work: with new requests coming in it would not, and be killed with them."""
    gateway, engines, _ = two
    ask(gateway)
    favourite = counts(engines).index(1)
    for number, looked in ((503, 1 - favourite), (200, favourite)):
        engines[favourite].health, looks = number, engines[favourite].looks
        eventually(lambda looks=looks: engines[favourite].looks >= looks + 2)  # the first one's answer is read by then
        before = counts(engines)[looked]
        assert ask(gateway).status_code == 200
        assert counts(engines)[looked] == before + 1
    for engine in engines:
        engine.health, looks = 503, engine.looks
        eventually(lambda engine=engine, looks=looks: engine.looks >= looks + 2)
    assert ask(gateway).status_code == 200  # all of them: better these than none


@pytest.mark.parametrize("refusal", [Script(status=503, answer={"message": "The request queue is full."})])
@pytest.mark.parametrize("stream", [False, True])
def test_a_full_engine_hands_its_request_to_the_other(two, refusal, stream):
    gateway, engines, servers = two
    ask(gateway)
    favourite = counts(engines).index(1)
    engines[favourite].script = refusal
    assert ask(gateway, stream=stream).status_code == 200
    assert counts(engines)[favourite] == 2
    assert gateway.value("lychee_engine_retries_total", engine=f"127.0.0.1:{servers[favourite].port}") == 1
    engines[1 - favourite].script = refusal
    assert ask(gateway, stream=stream).json()["error"]["message"] == "The request queue is full."
    assert engines[0].aborts == engines[1].aborts == []


def test_after_the_first_byte_nothing_is_tried_again(two):
    gateway, engines, _ = two
    for engine in engines:
        engine.script = Script(events=[*chat_events()[:3], Broken()])
    content = ask(gateway, stream=True).content
    assert content.startswith(b"".join(chat_events()[:3]))
    assert b"broke before the answer was complete" in content
    assert content.endswith(DONE)
    assert sum(counts(engines)) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_engine_dies_of_it_kills_no_other(two, stream):
    gateway, engines, servers = two
    ask(gateway)
    favourite = counts(engines).index(1)
    engines[favourite].script = Script(pause=30)
    replies = []
    thread = threading.Thread(target=lambda: replies.append(ask(gateway, stream=stream)))
    thread.start()
    eventually(lambda: counts(engines)[favourite] == 2)
    if stream:  # its head is there at once, and no byte of it
        servers[favourite].kill()
        thread.join(60)
        assert b"broke before the answer was complete" in replies[0].content
    else:
        servers[favourite].kill()
        thread.join(60)
        assert replies[0].status_code == 503
    assert counts(engines)[1 - favourite] == 0
    assert gateway.value("lychee_engine_retries_total", engine=f"127.0.0.1:{servers[favourite].port}") == 0


def test_refusals_are_final(two):
    gateway, engines, _ = two
    for engine in engines:
        engine.script = Script(status=400, answer={"message": "no"})
    assert ask(gateway).status_code == 400
    assert sum(counts(engines)) == 1


def test_an_engine_that_fails_again_and_again_gets_a_pause_and_then_one_try(two):
    gateway, engines, servers = two
    ask(gateway)
    favourite = counts(engines).index(1)
    name = f"127.0.0.1:{servers[favourite].port}"
    engines[favourite].script = Script(status=500, answer={"message": "CUDA error"})
    assert [ask(gateway).status_code for _ in range(5)] == [502] * 5
    assert gateway.value("lychee_engine_breaker_open", engine=name) == 1
    assert [ask(gateway).status_code for _ in range(5)] == [200] * 5
    engines[favourite].script = Script()
    eventually(
        lambda: ask(gateway).status_code == 200 and gateway.value("lychee_engine_breaker_open", engine=name) == 0
    )
    before = counts(engines)[favourite]
    ask(gateway)
    assert counts(engines)[favourite] == before + 1


def test_one_engine_is_used_whatever_its_breaker_says(gateway, engine):
    engine.script = Script(status=500, answer={"message": "CUDA error"})
    assert [gateway.chat().status_code for _ in range(8)] == [502] * 8
    engine.script = Script()
    assert gateway.chat().status_code == 200


def test_breaker():
    now = [0.0]
    breaker = Breaker(failures=2, pause=10, clock=lambda: now[0])
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now[0] = 10
    assert breaker.allows()
    breaker.begin()
    assert not breaker.allows()  # one at a time
    breaker.abandoned()
    breaker.begin()
    breaker.failed()
    now[0] = 19.9
    assert not breaker.allows()
    now[0] = 20
    breaker.begin()
    breaker.succeeded()
    assert breaker.allows()
    assert not breaker.open
    breaker.failed()
    breaker.answering()  # closed: the begin of an answer forgives no failure
    breaker.failed()
    assert breaker.open
    now[0] = 30
    breaker.begin()
    breaker.answering()
    assert not breaker.open
    breaker.failed()  # and then it broke
    breaker.failed()
    assert breaker.open


def test_a_long_stream_does_not_keep_a_breaker_half_open(start_gateway, engine):
    gateway = start_gateway(breaker_failures=1, breaker_pause=0.01)
    engine.script = Script(status=500, answer={"message": "CUDA error"})
    assert gateway.chat().status_code == 502
    assert gateway.of_engine("lychee_engine_breaker_open") == 1
    gate = threading.Event()
    engine.script = Script(gate=gate)
    thread = threading.Thread(target=lambda: gateway.chat(stream=True))
    thread.start()
    eventually(lambda: gateway.of_engine("lychee_engine_breaker_open") == 0)
    assert gateway.value("lychee_requests_in_flight") == 1
    gate.set()
    thread.join(60)


@pytest.mark.parametrize(
    ("prompt", "head"),
    [
        ("abc", b"abc"),
        (["ab", "cd"], b"abcd"),
        ([[1, 2], [3]], b"1,2,3,"),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url"}]}], b"userhi"),
        ([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], b"systemauserb"),
        ([None, {}, {"content": None}, 1.5], b""),
        ("\ud800", b"\xed\xa0\x80"),
    ],
    ids=str,
)
def test_head_of_a_prompt(prompt, head):
    assert prompt_head(prompt) == head


def test_head_of_a_long_prompt_is_short():
    assert prompt_head("x" * 10**6) == b"x" * HEAD_CHARACTERS
    assert prompt_head([["x" * 3000], [["y" * 3000]]]) == b"x" * 3000 + b"y" * 1096
