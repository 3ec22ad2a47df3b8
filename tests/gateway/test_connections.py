"""Hostile connections: slow, endless, malformed, cut off anywhere. Nothing of them stays behind."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time

import pytest

from tests.gateway.scripted_engine import DONE, Script, chat_events, wait_until

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
MESSAGES = [{"role": "user", "content": "hi"}]


def connect(gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.server.port), timeout=60)


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while data := connection.recv(65_536):
            answer += data
    except ConnectionResetError:
        pass
    return answer


def sent(connection: socket.socket, data: bytes) -> bool:
    """Send, and say whether the other side still takes it."""
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def tasks_of(gateway) -> int:
    """Number of tasks on the gateway's event loop."""
    counted: list[int] = []
    done = threading.Event()

    def count() -> None:
        counted.append(len(asyncio.all_tasks()))
        done.set()

    gateway.server._loop.call_soon_threadsafe(count)
    assert done.wait(60)
    return counted[0]


def nothing_left(gateway, tasks_before: int) -> None:
    """Check that every place, connection and task is given back."""
    state = gateway.server.server.config.app.state.gateway
    wait_until(lambda: gateway.value("lychee_requests_in_flight") == 0)
    wait_until(lambda: (state.admission.in_flight, state.admission.waiting) == (0, 0))
    wait_until(lambda: state.engines.engines[0].in_flight == 0)
    # A look of the monitor may be running, or not.
    wait_until(lambda: tasks_of(gateway) <= tasks_before + 1)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"", 408, b"request_timeout"),
        (b"POST /v1/chat/comp", 408, b"request_timeout"),
        (CHAT, 408, b"request_timeout"),
        (CHAT + b"content-length: 100\r\n\r\n{", 408, b"request_timeout"),
    ],
    ids=["nothing", "line", "headers", "body"],
)
def test_who_sends_slowly_is_cut_off(start_gateway, running, sent, status, code):
    gateway = start_gateway(header_timeout=0.3, body_timeout=0.3)
    before = tasks_of(gateway)
    with connect(gateway) as connection:
        connection.sendall(sent)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert code in answer
    assert running.engine.bodies == []
    nothing_left(gateway, before)


def test_a_byte_now_and_then_buys_no_time(start_gateway):
    gateway = start_gateway(header_timeout=0.5, body_timeout=0.5)
    for head in (b"GET /livez HTTP/1.1\r\nx: ", CHAT + b"content-length: 1000\r\n\r\n"):
        with connect(gateway) as connection:
            connection.sendall(head)
            for _ in range(500):  # ten seconds at least
                if not sent(connection, b"a"):
                    break
                time.sleep(0.02)
            else:
                pytest.fail("a byte now and then was taken without end")


def test_many_slow_clients_do_not_hold_up_a_quick_one(start_gateway):
    gateway = start_gateway(max_concurrency=4, header_timeout=30, body_timeout=30)
    before = tasks_of(gateway)
    slow = [connect(gateway) for _ in range(100)]
    for number, connection in enumerate(slow):
        connection.sendall(CHAT if number % 2 else CHAT + b"content-length: 1000\r\n\r\n{")
    assert gateway.chat().status_code == 200  # a place is taken only when the body is there
    for connection in slow:
        connection.close()
    nothing_left(gateway, before)


def test_long_and_endless_headers_are_refused(start_gateway):
    gateway = start_gateway(max_header_bytes=2000)
    with connect(gateway) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 2000 + b"\r\n\r\n")
        answer = read_all(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert json.loads(body)["error"]["message"] == "request line and headers are longer than 2000 bytes"
    with connect(gateway) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nx: ")
        assert not all(sent(connection, b"a" * 1000) for _ in range(10_000))
    assert gateway.http.get("/livez", headers={"x-fine": "a" * 1800}).status_code == 200


def test_what_is_not_http_is_refused_in_json(gateway):
    for nonsense in (
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    ):
        with connect(gateway) as connection:
            connection.sendall(nonsense)
            head, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["code"] == "invalid_http"


BODIES = {
    "empty": b"",
    "no json": b"{",
    "only spaces": b"   ",
    "half a string": b'{"messages": "',
    "array": b"[]",
    "null": b"null",
    "number": b"1",
    "text": b'"messages"',
    "not utf-8": b'{"messages": ["\xff\xfe"]}',
    "utf-16": json.dumps({"messages": MESSAGES}).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "nan": b'{"messages": [1], "temperature": NaN}',
    "infinite": b'{"messages": [1], "temperature": 1e999}',
    "deep array": b"[" * 100_000,
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep messages": b'{"messages": [' + b"[" * 20_000 + b"]" * 20_000 + b"]}",
    "huge number": b'{"messages": [1], "n": 1' + b"0" * 5000 + b"}",
    "nul": b"\x00" * 100,
    "trailing": b'{"messages": [1]} {}',
    "single quotes": b"{'messages': []}",
    "comment": b'{"messages": [] /* none */}',
    "control character": b'{"messages": "\n"}',
    "no messages": b"{}",
    "null messages": b'{"messages": null}',
    "empty messages": b'{"messages": []}',
    "messages as an object": b'{"messages": {}}',
    "messages as text": b'{"messages": "hi"}',
    "stream as text": b'{"messages": [1], "stream": "true"}',
    "lychee as a number": b'{"messages": [1], "lychee": 1}',
    "lychee as an array": b'{"messages": [1], "lychee": []}',
    "budget of zero": b'{"messages": [1], "lychee": {"budget": 0}}',
    "budget as a fraction": b'{"messages": [1], "lychee": {"budget": 1.5}}',
    "budget true": b'{"messages": [1], "lychee": {"budget": true}}',
    "mode as an object": b'{"messages": [1], "lychee": {"mode": {}}}',
    "value alone": b'{"messages": [1], "lychee": {"value": 0.5}}',
    "custom params as text": b'{"messages": [1], "custom_params": "x"}',
    "our own param": b'{"messages": [1], "custom_params": {"lychee_budget": 1}}',
    "deep param": b'{"messages": [1], "custom_params": {"a": {"b": 1}}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_malformed_bodies_are_refused_and_the_connection_stays(gateway, engine, body):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.server.port, timeout=60)
    headers = {"content-type": "application/json"}
    for path in ("/v1/chat/completions", "/v1/completions"):
        connection.request("POST", path, body, headers)
        used = connection.sock
        reply = connection.getresponse()
        error = json.loads(reply.read())["error"]
        assert 400 <= reply.status < 500
        assert error["type"] == "invalid_request_error"
        connection.request("GET", "/livez")
        assert connection.getresponse().read() == b'{"status":"live"}'
        assert connection.sock is used is not None
    connection.close()
    assert engine.bodies == []


@pytest.mark.parametrize("kind", ["text/plain", "", "application/xml", "multipart/form-data; boundary=x"])
def test_other_media_types_are_refused_and_the_connection_stays(gateway, kind):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.server.port, timeout=60)
    for _ in range(3):
        connection.request("POST", "/v1/chat/completions", b"x" * 100_000, {"content-type": kind})
        used = connection.sock
        reply = connection.getresponse()
        reply.read()
        assert (reply.status, connection.sock) == (415, used)
    connection.close()


def test_ten_megabytes_and_ten_thousand_messages_pass_whole(gateway, engine):
    before = tasks_of(gateway)
    messages = [{"role": ("user", "assistant")[number % 2], "content": f"message {number}"} for number in range(10_000)]
    assert gateway.chat(messages=messages).status_code == 200
    assert engine.bodies[0]["messages"] == messages
    long = [{"role": "user", "content": "né " * 2_500_000}]
    for stream in (False, True):
        assert gateway.chat(messages=long, stream=stream).status_code == 200
        assert engine.bodies[-1]["messages"] == long
    nothing_left(gateway, before)


STAGES = ["connected", "line", "headers", "half the body", "whole body", "first chunk", "between chunks", "last chunk"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_leaving_at_every_stage_leaves_nothing_behind(gateway, engine, stage, reset):
    gate = threading.Event()
    engine.script = Script(gate=gate)
    if stage in ("first chunk", "between chunks"):
        engine.script = Script(events=[*chat_events()[: 1 if stage == "first chunk" else 4], None])
    before, times = tasks_of(gateway), 5
    body = json.dumps({"messages": MESSAGES, "stream": stage != "whole body"}).encode()
    whole = CHAT + b"content-length: %d\r\n\r\n" % len(body) + body
    cuts = {"connected": 0, "line": 10, "headers": len(CHAT) - 5, "half the body": len(whole) - 20}
    for number in range(times):
        connection = connect(gateway)
        connection.sendall(whole[: cuts.get(stage, len(whole))])
        seen, wanted = b"", {"first chunk": b"assistant", "between chunks": b'"content": "\\n', "last chunk": b"stop"}
        while wanted.get(stage, b"") not in seen:
            seen += connection.recv(65_536)
        if stage == "whole body":
            wait_until(lambda number=number: len(engine.bodies) == number + 1)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()
    if stage == "whole body":  # else the last one may be answered before it is seen that nobody waits for it
        wait_until(lambda: len(engine.aborts) == times)
    gate.set()
    nothing_left(gateway, before)
    # Every request that an engine got and did not end was aborted, once, and no other.
    begun = [each["rid"] for each in engine.bodies]
    aborted = [rid for rid, _ in engine.aborts]
    assert len(set(aborted)) == len(aborted)
    assert set(aborted) <= set(begun)
    if stage in ("whole body", "first chunk", "between chunks"):
        assert sorted(aborted) == sorted(begun)
        assert len(begun) == times
    if stage in cuts:
        assert begun == []
    engine.script = Script()
    assert gateway.chat(stream=True).content.endswith(DONE)


CHUNKED = CHAT + b"transfer-encoding: chunked\r\n"
BODY = json.dumps({"messages": MESSAGES}).encode()
WHOLE_CHUNK = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("endless", [b"x-a: " + b"a" * 500 + b"\r\n", b"a" * 500], ids=["many trailers", "a long one"])
def test_trailers_have_an_end(start_gateway, running, endless):
    gateway = start_gateway(max_header_bytes=2000)
    with connect(gateway) as connection:
        connection.sendall(CHUNKED + b"\r\n" + WHOLE_CHUNK + b"x-b: ")
        while sent(connection, endless):
            time.sleep(0.001)
        answer = read_all(connection)
    assert b"trailers are longer than 2000 bytes" in answer or answer == b""  # a reset may have eaten it
    assert running.engine.bodies == []


def test_a_trailer_is_no_header(gateway, engine):
    with connect(gateway) as connection:
        connection.sendall(
            CHUNKED + b"connection: close\r\n\r\n" + WHOLE_CHUNK + b"x-request-id: of the trailer\r\n\r\n"
        )
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"of the trailer" not in answer
    assert len(engine.bodies) == 1


def test_a_body_does_not_count_as_the_next_requests_head(start_gateway):
    gateway = start_gateway(max_header_bytes=2000)
    with connect(gateway) as connection:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 3000}]}).encode()
        first = CHAT + b"content-length: %d\r\n\r\n" % len(body) + body
        connection.sendall(first + b"GET /livez HTTP/1.1\r\nhost: x\r\n")
        answer = b""
        while b'"lychee"' not in answer:
            answer += connection.recv(65_536)
        connection.sendall(b"connection: close\r\n\r\n")
        assert read_all(connection).endswith(b'{"status":"live"}')


def open_connections(gateway) -> int:
    return len(gateway.server.server.server_state.connections)


def test_who_never_reads_loses_the_connection(start_gateway, running, monkeypatch):
    monkeypatch.setattr("lychee_server.protocol._CLOSING_SECONDS", 0.2)
    gateway = start_gateway(stream_idle_timeout=0.3)
    gateway.http.close()
    wait_until(lambda: open_connections(gateway) == 0)
    running.engine.script = Script(events=[chat_events()[1] * 4000] * 40)
    with connect(gateway) as connection:
        body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
        connection.sendall(CHAT + b"content-length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: open_connections(gateway) == 1)
        wait_until(lambda: open_connections(gateway) == 0)


def test_who_reads_slowly_gets_the_whole_answer(start_gateway, running, monkeypatch):
    monkeypatch.setattr("lychee_server.protocol._CLOSING_SECONDS", 3600)  # looked at below, after each piece
    gateway = start_gateway()
    gateway.http.close()
    wait_until(lambda: open_connections(gateway) == 0)
    running.engine.script = Script(answer={"padding": "x" * 20_000_000})
    with connect(gateway) as connection:
        # what two buffers of the kernel hold is gone in one look: they have to be small against the answer
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        body = json.dumps({"messages": MESSAGES}).encode()
        connection.sendall(CHAT + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: open_connections(gateway) == 1)
        (protocol,) = gateway.server.server.server_state.connections
        wait_until(lambda: protocol._closing is not None)  # all was said to the transport, most is still there
        read, looks, left = 0, 0, protocol.transport.get_write_buffer_size()
        while data := connection.recv(200_000):
            read += len(data)
            now = protocol.transport.get_write_buffer_size()
            if now < left:
                gateway.server._loop.call_soon_threadsafe(protocol._look_at_closing, left)
                looks, left = looks + 1, now
    assert looks > 1
    assert read > 20_000_000
