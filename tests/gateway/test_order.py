"""In which order a request ends: what it held is free before its client, or the engine, is told that it is over."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from lychee_server.keys import hash_key
from lychee_server.limits import Lease
from tests.gateway.scripted_engine import Broken, Script, chat_events, wait_until
from tests.gateway.test_disconnects import MESSAGES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lychee_server.forward import Gateway

KEY = "lychee-test-key-of-alice"


@dataclasses.dataclass(frozen=True)
class Held:
    """What the requests hold at a moment, and how many have been charged."""

    places: int
    at_the_engine: int
    of_the_caller: int
    charged: int


class Watched:
    """The gateway's application, and what its requests held when the last byte of an answer was about to leave."""

    def __init__(self, app: ASGIApp, gateway: Gateway, charges: list[float]) -> None:
        self.app, self.gateway, self.charges = app, gateway, charges
        self.seen: list[Held] = []

    def look(self) -> Held:
        (engine,) = self.gateway.engines.engines
        account = self.gateway.limits._accounts["alice"]
        return Held(self.gateway.admission.in_flight, engine.in_flight, account.in_flight, len(self.charges))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.seen.append(self.look())
            await send(message)

        await self.app(scope, receive, watched)


@pytest.fixture
def limited(start_gateway, tmp_path):
    """A gateway with one place, and one key that may have one request at a time."""
    policy, keys = tmp_path / "policy.yaml", tmp_path / "keys.yaml"
    limits = "max_in_flight: 1, tokens_per_minute: 1000000, requests_per_minute: 1000"
    policy.write_text(f"version: 1\ntiers: {{one: {{{limits}}}}}\n")
    keys.write_text(f'- {{id: alice, tier: one, sha256: "{hash_key(KEY)}"}}\n')
    gateway = start_gateway(policy_file=policy, keys_file=keys, max_concurrency=1, max_queue=0)
    gateway.http.headers["authorization"] = f"Bearer {KEY}"
    return gateway


@pytest.fixture
def watched(limited, monkeypatch) -> Watched:
    charges: list[float] = []
    settle = Lease.settle

    def charged(lease: Lease, tokens: float) -> None:
        settle(lease, tokens)
        charges.append(tokens)

    monkeypatch.setattr(Lease, "settle", charged)
    config = limited.server.server.config  # connections from now on take the application from here
    config.loaded_app = Watched(config.loaded_app, config.app.state.gateway, charges)
    return config.loaded_app


def ask(gateway, **body) -> socket.socket:
    content = json.dumps({"messages": MESSAGES, **body}).encode()
    connection = socket.create_connection(("127.0.0.1", gateway.server.port), timeout=60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_all_is_free_and_charged_before_the_last_byte_leaves(limited, watched, engine, stream):
    """Or a client with one place, that asks again when it has read its answer, would be refused now and then."""
    for _ in range(2):
        connection = ask(limited, stream=stream)
        with connection:
            reply = b"".join(iter(lambda c=connection: c.recv(65536), b""))
        assert reply.startswith(b"HTTP/1.1 200"), reply
    assert watched.seen == [Held(0, 0, 0, 1), Held(0, 0, 0, 2)]
    assert watched.charges == [1004, 1004]
    assert engine.aborts == []


def test_of_a_stream_that_breaks_too(limited, watched, engine):
    engine.script = Script(events=[*chat_events()[:3], Broken()])
    connection = ask(limited, stream=True)
    with connection:
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b'"engine_unavailable"' in reply
    assert watched.seen == [Held(0, 0, 0, 1)]
    wait_until(lambda: engine.aborts)  # it may run on where only the connection broke


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_who_leaves_holds_nothing_when_the_engine_is_told(limited, watched, engine, stream):
    class Aborts(list):
        def append(self, item: object) -> None:
            held.append(watched.look())
            super().append(item)

    held: list[Held] = []
    engine.aborts = Aborts()
    engine.script = Script(events=[*chat_events()[:3], None], gate=threading.Event())
    connection = ask(limited, stream=stream)
    with connection:
        wait_until(lambda: engine.bodies)
    wait_until(lambda: engine.aborts)
    assert held == [Held(0, 0, 0, 1)]
    assert [rid for rid, _ in engine.aborts] == [engine.bodies[0]["rid"]]
    assert watched.seen == []


def test_a_caller_without_a_place_is_refused_before_its_body_is_read(limited, engine):
    engine.script = Script(gate=(gate := threading.Event()))
    first = ask(limited)
    with first:
        wait_until(lambda: engine.bodies)
        with socket.create_connection(("127.0.0.1", limited.server.port), timeout=60) as second:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            second.sendall(head.encode() + b"content-type: application/json\r\ncontent-length: 30000000\r\n\r\n")
            assert second.recv(65536).startswith(b"HTTP/1.1 429")
        gate.set()
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
