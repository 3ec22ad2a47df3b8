from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry

from lychee_server.app import create_app
from lychee_server.drain import DrainingServer
from lychee_server.settings import Settings
from tests.gateway.scripted_engine import ScriptedEngine, ThreadedServer, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Looks that follow each other closely, so that tests are quick; waits that only a fault comes to the end of.
TIMES = {"health_interval": 0.05, "connect_timeout": 30.0, "health_timeout": 30.0, "ready_timeout": 30.0}


@dataclass
class RunningEngine:
    engine: ScriptedEngine
    server: ThreadedServer


@dataclass
class RunningGateway:
    server: ThreadedServer
    registry: CollectorRegistry
    http: httpx.Client
    engine: str  # label of its (first) engine
    closing: contextlib.ExitStack  # closes at the end what a test has opened

    def value(self, name: str, /, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def of_engine(self, name: str) -> float:
        """A value of the metrics with the label `engine`; there must be one engine only."""
        samples = [s for family in self.registry.collect() for s in family.samples if s.name == name]
        (value,) = [sample.value for sample in samples] or [0.0]
        return value

    def total(self, name: str, /, **labels: str) -> float:
        """A value once no completion is in flight: a client that left is gone a moment before it is counted."""
        wait_until(lambda: self.value("lychee_requests_in_flight") == 0)
        return self.value(name, **labels)

    def ready(self) -> bool:
        return self.http.get("/readyz").status_code == 200

    def openai(self) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.server.url}/v1", api_key="unused", max_retries=0, timeout=60)
        return self.closing.enter_context(client)

    def chat(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}], **body})


@pytest.fixture
def running() -> Iterator[RunningEngine]:
    engine = ScriptedEngine()
    with serving(ThreadedServer(engine.app)) as server:
        yield RunningEngine(engine, server)


@pytest.fixture
def engine(running: RunningEngine) -> ScriptedEngine:
    return running.engine


@pytest.fixture
def start_gateway(running: RunningEngine) -> Iterator[Callable[..., RunningGateway]]:
    with contextlib.ExitStack() as stack:

        def start(*, wait: bool = True, **settings: Any) -> RunningGateway:
            chosen = Settings(**{"engine_url": running.server.url, **TIMES, **settings})
            registry = CollectorRegistry()
            app = create_app(chosen, registry=registry)
            drain = app.state.gateway.drain
            server = ThreadedServer(app, lambda config: DrainingServer(config, drain, chosen))
            stack.enter_context(serving(server))
            http = stack.enter_context(httpx.Client(base_url=server.url, timeout=60))
            gateway = RunningGateway(server, registry, http, urlsplit(chosen.all_engine_urls[0]).netloc, stack)
            if wait:
                wait_until(gateway.ready)
            return gateway

        yield start
        running.server.begin_kill()  # both servers stop at the same time: tests take half as long


@pytest.fixture
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    return start_gateway()
