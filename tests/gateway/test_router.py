"""The gateway before SGLang's real router, which stands before scripted engines."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest

from lychee_sgl.bench import gateway_mix
from lychee_sgl.bench.gateway_parts import Child, router
from tests.gateway.scripted_engine import Script, ScriptedEngine, ThreadedServer, chat_events, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.gateway.conftest import RunningGateway


class Routed:
    """Two scripted engines behind a router."""

    def __init__(self, engines: list[ScriptedEngine], servers: list[ThreadedServer], front: Child) -> None:
        self.engines = engines
        self.servers = servers
        self.front = front

    def seen(self) -> list[dict]:
        return [body for engine in self.engines for body in engine.bodies]


@pytest.fixture(scope="module")
def routed() -> Iterator[Routed]:
    engines = [ScriptedEngine(), ScriptedEngine()]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving(ThreadedServer(engine.app))) for engine in engines]
        front = router(servers)
        stack.callback(front.kill)
        front.start()
        front.wait()
        yield Routed(engines, servers, front)


@pytest.fixture
def gateway(routed: Routed, start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    for engine in routed.engines:
        engine.script = Script()
        engine.bodies.clear()
        engine.aborts.clear()
    return start_gateway(engine_url=routed.front.url, health_interval=0.2)


def replicas(gateway: RunningGateway, routed: Routed, name: str) -> list[float]:
    return [
        gateway.value(name, engine=gateway.engine, replica=server.url.removeprefix("http://"))
        for server in routed.servers
    ]


def test_the_router_is_as_one_engine(gateway: RunningGateway, routed: Routed) -> None:
    # the plan and the context window, which the router does not tell, are the replicas'
    assert gateway.http.get("/v1/sparsity").json()["plan"]["name"] == "built-in"
    assert replicas(gateway, routed, "lychee_replica_up") == [1, 1]
    whole = gateway.chat(model="tiny", lychee={"budget": 512}, custom_params={"mine": 1}, top_k=3)
    assert whole.json()["lychee"]["budget"] == 512
    assert whole.headers["x-lychee-attended-fraction"] == "0.6"
    (body,) = routed.seen()
    assert body["custom_params"] == {"mine": 1, "lychee_budget": 512}
    assert (body["top_k"], len(body["rid"])) == (3, 32)
    text = gateway.http.post("/v1/completions", json={"model": "tiny", "prompt": "hi", "lychee": {"budget": "dense"}})
    assert text.status_code == 200
    assert routed.seen()[-1]["custom_params"] == {"lychee_budget": "dense"}
    assert sum(replicas(gateway, routed, "lychee_replica_answers_total")) == 2


def test_a_stream_passes_chunk_by_chunk(gateway: RunningGateway) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        raw = b"".join(reply.iter_raw())
    expected = chat_events()
    assert raw.startswith(b"".join(expected[:-2]))
    last = json.loads(raw.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert last["lychee"]["attended_fraction"] == 0.6


def test_what_the_router_refuses(gateway: RunningGateway) -> None:
    """It wants the model's name as it is, and no prompts of token ids."""
    other = gateway.chat(model="default")
    assert (other.status_code, other.json()["error"]["type"]) == (404, "invalid_request_error")
    ids = gateway.http.post("/v1/completions", json={"model": "tiny", "prompt": [1, 2, 3]})
    assert ids.status_code == 400


def test_what_the_router_does_not_pass_on_reaches_the_replicas(
    routed: Routed, start_gateway: Callable[..., RunningGateway], tmp_path
) -> None:
    for number, engine in enumerate(routed.engines):
        engine.loads = [{"num_waiting_reqs": 3 + number, "token_usage": 0.2 + 0.1 * number}]
        engine.token_count = 4000
        engine.aborts.clear()
        engine.script = Script(events=[chat_events()[0], None])
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\n"
        "pressure: {queue: {low: 100, high: 200}, kv_use: {low: 0.8, high: 0.9}, floor: 256, interval: 0.1}\n"
    )
    gateway = start_gateway(engine_url=routed.front.url, policy_file=policy)

    def pressure() -> dict:
        return gateway.http.get("/v1/sparsity").json()["pressure"]

    wait_until(lambda: (pressure()["queue"], pressure()["kv_use"]) == (7, 0.3))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        next(reply.iter_raw())
        rid = routed.seen()[-1]["rid"]
    wait_until(lambda: all([told for told, _ in engine.aborts] == [rid] for engine in routed.engines))


def test_an_engine_that_dies_under_load_costs_its_open_streams_alone() -> None:
    record = gateway_mix.run(300, lambda _: None, at_once=24, kills=1, routed=True)
    assert record["problems"] == []
    seen = record["clients_saw"]
    assert seen["answered"] > 200
    assert "wrong" not in seen
    # an answer in one piece goes to the other engine: nobody hears 503
    assert set(record["gateway_counted"]) <= {"200", "400", "499", "502"}
    assert seen.get("error", 0) <= 24
    assert all(record["replicas"])
