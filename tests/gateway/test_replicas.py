"""What the gateway makes of a router's list of workers, whatever is in it and however it changes."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lychee_server.errors import EngineUnreachable
from lychee_server.metrics import GatewayMetrics
from lychee_server.policy.pressure import EngineLoad
from lychee_server.policy.runtime import BudgetPolicy
from lychee_server.replicas import Replicas
from lychee_server.upstream import Upstream
from tests.gateway.scripted_engine import INFO, ScriptedEngine, ThreadedServer, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.gateway.conftest import RunningGateway


class Router:
    """Lists the workers that a test gives it; None for an address that is no router's."""

    def __init__(self) -> None:
        self.workers: list[dict[str, Any]] | None = []
        well = [Route(path, lambda _request: Response()) for path in ("/readiness", "/health", "/health_generate")]
        self.app = Starlette(routes=[Route("/workers", self.listed), Route("/v1/loads", self.loads), *well])

    async def listed(self, _request: object) -> Response:
        return Response(status_code=404) if self.workers is None else JSONResponse({"workers": self.workers})

    async def loads(self, _request: object) -> Response:
        return JSONResponse({"loads": [{"num_waiting_reqs": 3, "token_usage": 0.5}]})

    def lists(self, *urls: str) -> None:
        self.workers = [{"url": url, "is_healthy": True} for url in urls]


class Slow(Upstream):
    """A client that takes as long to close as a test wants."""

    closing: asyncio.Event
    go_on: asyncio.Event

    async def aclose(self) -> None:
        self.closing.set()
        await self.go_on.wait()
        await super().aclose()


@pytest.fixture
def router() -> Iterator[tuple[Router, str]]:
    made = Router()
    with serving(ThreadedServer(made.app)) as server:
        yield made, server.url


@pytest.fixture
async def front(router: tuple[Router, str]) -> AsyncIterator[Upstream]:
    upstream = Upstream(router[1], 5, 5)
    yield upstream
    await upstream.aclose()


def of(front: Upstream, kind: type[Upstream] = Upstream) -> tuple[Replicas, CollectorRegistry]:
    registry = CollectorRegistry()
    return Replicas("front", front, lambda url: kind(url, 1, 1), GatewayMetrics(registry)), registry


def urls(replicas: Replicas) -> list[str]:
    return [upstream.url for upstream in replicas.direct()]


async def test_workers_without_a_usable_address_are_left_out(router: tuple[Router, str], front: Upstream) -> None:
    unusable = ("http://[oops", "http://h:99999", "http://h:port", "grpc://h:1", "http://", "")
    router[0].lists(*unusable, "http://user:word@a:1/")
    replicas, registry = of(front)
    assert await replicas.look(5)
    assert urls(replicas) == ["http://user:word@a:1"]
    # its label is its host and port, not its password
    assert registry.get_sample_value("lychee_replica_up", {"engine": "front", "replica": "a:1"}) == 1


async def test_who_asks_while_a_replica_leaves_gets_the_others(router: tuple[Router, str], front: Upstream) -> None:
    router[0].lists("http://a:1", "http://b:1")
    Slow.closing, Slow.go_on = asyncio.Event(), asyncio.Event()
    replicas, registry = of(front, Slow)
    await replicas.look(5)
    before = replicas.direct()
    router[0].lists("http://b:1", "http://c:1")
    look = asyncio.create_task(replicas.look(5))
    await Slow.closing.wait()
    assert urls(replicas) == ["http://b:1", "http://c:1"]
    assert registry.get_sample_value("lychee_replica_up", {"engine": "front", "replica": "a:1"}) is None
    Slow.go_on.set()
    await look
    # and who still has it hears of an engine that is away
    with pytest.raises(EngineUnreachable):
        await before[0].get("/v1/loads", 1)
    await before[0].abort(["x"])
    await replicas.aclose()


def shown(registry: CollectorRegistry, name: str) -> dict[str, float]:
    """What a scrape sees of each replica."""
    lines = text_string_to_metric_families(generate_latest(registry).decode())
    return {s.labels["replica"]: s.value for family in lines for s in family.samples if s.name == name}


async def test_metrics_show_the_replicas_that_the_router_lists(router: tuple[Router, str], front: Upstream) -> None:
    router[0].lists("http://a:1", "http://b:1")
    replicas, registry = of(front)
    await replicas.look(5)
    for url in ("http://a:1", "http://a:1/", "http://b:1"):
        replicas.answered(url)
    assert shown(registry, "lychee_replica_answers_total") == {"a:1": 2, "b:1": 1}
    created = shown(registry, "lychee_replica_answers_created")["a:1"]
    # nothing is left of one that is gone, and a late answer does not bring it back
    router[0].lists("http://b:1")
    await replicas.look(5)
    replicas.answered("http://a:1")
    for name in ("lychee_replica_answers_total", "lychee_replica_answers_created", "lychee_replica_up"):
        assert shown(registry, name).keys() == {"b:1"}
    # one that returns goes on where it was
    router[0].lists("http://a:1", "http://b:1", "http://c:1")
    await replicas.look(5)
    replicas.answered("http://a:1")
    assert shown(registry, "lychee_replica_answers_total") == {"a:1": 3, "b:1": 1, "c:1": 0}
    assert shown(registry, "lychee_replica_answers_created")["a:1"] == created
    # an engine in the router's place has no replicas
    router[0].workers = None
    await replicas.look(5)
    assert shown(registry, "lychee_replica_answers_total") == {}
    await replicas.aclose()


async def test_another_password_is_the_same_replica(router: tuple[Router, str], front: Upstream) -> None:
    router[0].lists("http://user:word@a:1")
    replicas, registry = of(front)
    await replicas.look(5)
    router[0].lists("http://user:other@a:1")
    await replicas.look(5)
    assert urls(replicas) == ["http://user:other@a:1"]
    assert shown(registry, "lychee_replica_up") == {"a:1": 1}
    assert shown(registry, "lychee_replica_answers_total") == {"a:1": 0}
    await replicas.aclose()


def test_engines_that_take_others_places_are_asked_for_plan_and_window(
    router: tuple[Router, str], start_gateway: Callable[..., RunningGateway]
) -> None:
    """The router itself is never away, so what its first engines had said was held for good."""
    old, new = ScriptedEngine(), ScriptedEngine()
    new.info = {**INFO, "context_window": 4096, "plan": {**INFO["plan"], "name": "new"}}
    with serving(ThreadedServer(old.app)) as first, serving(ThreadedServer(new.app)) as second:
        router[0].lists(first.url)
        gateway = start_gateway(engine_url=router[1])
        assert gateway.http.get("/readyz").json()["context_window"] == 8192
        router[0].lists(second.url)
        wait_until(lambda: gateway.http.get("/readyz").json()["context_window"] == 4096)
        assert gateway.http.get("/v1/sparsity").json()["plan"]["name"] == "new"
        assert gateway.chat(lychee={"budget": 5000}).json()["error"]["param"] == "lychee.budget"
        plans = [family for family in gateway.registry.collect() if family.name == "lychee_plan_info"]
        assert [sample.labels["name"] for sample in plans[0].samples] == ["new"]
        assert gateway.of_engine("lychee_engine_restarts_seen_total") == 0


def test_counts_of_replicas_long_gone_are_forgotten() -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    for number in range(257):
        metrics.replica_seen("front", f"a:{number}", up=True)
        metrics.replica_answered("front", f"a:{number}")
        metrics.replica_gone("front", f"a:{number}")
    metrics.replica_seen("front", "a:0", up=True)  # the longest away of one more than are kept
    metrics.replica_seen("front", "a:1", up=True)
    assert shown(registry, "lychee_replica_answers_total") == {"a:0": 0, "a:1": 1}


async def test_an_engine_in_a_routers_place_is_one_engine(router: tuple[Router, str], front: Upstream) -> None:
    router[0].lists("http://a:1")
    replicas, _ = of(front)
    assert await replicas.look(5)
    router[0].workers = None
    assert not await replicas.look(5)
    assert (replicas.behind_router, replicas.direct()) == (False, (front,))


@pytest.mark.parametrize(
    ("in_flight", "urls", "batch"),
    # one address, and behind it no router, three engines, two, or for now none
    [(8, None, 9), (8, ["http://a", "http://b", "http://c"], 3), (9, ["http://a", "http://b"], 5), (8, [], 9)],
)
async def test_a_batch_is_that_of_one_engine(
    router: tuple[Router, str], front: Upstream, in_flight: int, urls: list[str] | None, batch: int
) -> None:
    replicas, _ = of(front)
    if urls is None:
        router[0].workers = None
    else:
        router[0].lists(*urls)
    await replicas.look(5)
    engine = SimpleNamespace(monitor=SimpleNamespace(ready=True), replicas=replicas, in_flight=in_flight)
    metrics = GatewayMetrics(CollectorRegistry())
    engines = SimpleNamespace(engines=(engine,))
    budgets = BudgetPolicy(None, engines=engines, metrics=metrics, waiting=lambda: 0, curve=None, timeout=1)
    assert budgets._batch() == batch
    await replicas.aclose()


async def test_a_silent_replica_hides_no_others_load(router: tuple[Router, str], front: Upstream) -> None:
    made, url = router
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        made.lists(f"http://127.0.0.1:{silent.getsockname()[1]}", url)
        replicas, registry = of(front)
        await replicas.look(5)
        budgets = BudgetPolicy(
            None,
            engines=SimpleNamespace(engines=()),
            metrics=GatewayMetrics(CollectorRegistry()),
            waiting=lambda: 0,
            curve=None,
            timeout=0.3,
        )
        engine = SimpleNamespace(name="front", monitor=SimpleNamespace(ready=True), replicas=replicas)
        assert await budgets._loads(engine) == [EngineLoad(num_waiting_reqs=3, token_usage=0.5)]
        assert registry.get_sample_value("lychee_replica_up", {"engine": "front", "replica": url[7:]}) == 1
        await replicas.aclose()
