"""The engines behind the gateway: which of them gets a request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import math
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lychee_server.breaker import Breaker
from lychee_server.errors import EngineFailed, EngineLost, EngineTimeout, EngineUnavailable, GatewayError
from lychee_server.health import EngineMonitor
from lychee_server.replicas import Replicas
from lychee_server.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from lychee_server.health import EngineInfo
    from lychee_server.metrics import GatewayMetrics
    from lychee_server.settings import Settings
    from lychee_server.speed import SpeedReference

# How far above the mean an engine may be loaded and still get the requests whose prefix it has seen.
_AFFINITY_LOAD = 1.25
_VERDICTS = (EngineLost, EngineTimeout, EngineFailed)


class Engine:
    """One engine: its client, its health, its breaker and what it has in hand.

    Attributes:
        name: host and port, its label in the metrics.
        replicas: the engine itself, or those behind it when it is a router.
        in_flight: completion requests that it works on.
    """

    def __init__(self, upstream: Upstream, metrics: GatewayMetrics, settings: Settings, speed: SpeedReference) -> None:
        self.name = urlsplit(upstream.url).netloc
        self.upstream = upstream
        self.replicas = Replicas(self.name, upstream, functools.partial(Upstream.connect, settings), metrics)
        self.monitor = EngineMonitor(self.name, upstream, metrics, settings, speed, self.replicas)
        self.breaker = Breaker(settings.breaker_failures, settings.breaker_pause)
        self.in_flight = 0
        self._metrics = metrics
        metrics.engine_added(self.name)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Count one request; what it raises is the engine's verdict, for health and breaker."""
        self.breaker.begin()
        self._loaded(1)
        try:
            yield
        except GatewayError as error:
            self.monitor.report(error)
            self._judge(error)
            raise
        except BaseException:  # cancelled because the client left: no verdict; raised again at once
            self.breaker.abandoned()
            raise
        else:
            self.breaker.succeeded()
        finally:
            self._loaded(-1)
            self._metrics.engine_breaker(self.name, open=self.breaker.open)

    def teller(self) -> Upstream:
        """Whom to ask what all replicas answer alike and a router does not pass on."""
        return next(iter(self.replicas.direct()), self.upstream)

    def answering(self) -> None:
        """A stream of the engine has begun."""
        self.breaker.answering()
        self._metrics.engine_breaker(self.name, open=self.breaker.open)

    def _judge(self, error: GatewayError) -> None:
        if isinstance(error, _VERDICTS):
            self.breaker.failed()
        elif isinstance(error, EngineUnavailable):
            self.breaker.abandoned()  # full, or away: the monitor and the load know
        else:
            self.breaker.succeeded()

    def _loaded(self, change: int) -> None:
        self.in_flight += change
        self._metrics.engine_load(self.name, self.in_flight)


class EnginePool:
    """All engines. They are taken to serve the same model with the same head plan."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)

    @classmethod
    def connect(cls, settings: Settings, metrics: GatewayMetrics, speed: SpeedReference) -> EnginePool:
        """Make the engines of the settings; nothing is sent yet."""
        urls = settings.all_engine_urls
        return cls([Engine(Upstream.connect(settings, url), metrics, settings, speed) for url in urls])

    def require(self) -> EngineInfo:
        """Return what is known of the ready engines: of several, of the one with the shortest context window.

        Raises:
            EngineUnavailable: none is ready; the message says why.
        """
        ready = [engine.monitor.require() for engine in self.engines if engine.monitor.ready]
        return min(ready, key=lambda info: info.context_window) if ready else self.engines[0].monitor.require()

    def any(self) -> Engine:
        """Return an engine for a question that all answer alike; one that is ready, if any is."""
        return next((engine for engine in self.engines if engine.monitor.ready), self.engines[0])

    def choose(self, prompt_head: bytes, tried: Collection[Engine] = ()) -> Engine:
        """Choose the engine for a request.

        The prompt's beginning has a favourite among the engines (rendezvous hashing: when one goes away, only its
        prompts move), for there the radix cache has it. A favourite that is loaded too far above the mean is passed
        over for the least loaded. Engines that are about to end, or whose breaker is open, are left out as long as
        there is another.

        Args:
            prompt_head: what the affinity goes by.
            tried: engines that have failed on this request.

        Raises:
            EngineUnavailable: no engine is ready that has not been tried.
        """
        ready = [engine for engine in self.engines if engine.monitor.ready and engine not in tried]
        if not ready:
            self.engines[0].monitor.require()
            raise EngineUnavailable("no other engine is ready; try again later")
        staying = [engine for engine in ready if not engine.monitor.leaving] or ready
        candidates = [engine for engine in staying if engine.breaker.allows()] or staying
        if len(candidates) == 1:
            return candidates[0]
        favourite = max(candidates, key=lambda engine: _affinity(prompt_head, engine.name))
        mean = (sum(engine.in_flight for engine in candidates) + 1) / len(candidates)
        if favourite.in_flight < math.ceil(mean * _AFFINITY_LOAD):
            return favourite
        return min(candidates, key=lambda engine: engine.in_flight)

    def has_another(self, tried: Collection[Engine]) -> bool:
        """Whether a ready engine is left that has not been tried."""
        return any(engine.monitor.ready and engine not in tried for engine in self.engines)

    async def run(self) -> None:
        """Watch all engines until cancelled."""
        async with asyncio.TaskGroup() as group:
            for engine in self.engines:
                group.create_task(engine.monitor.run(), name=f"engine-monitor-{engine.name}")

    async def aclose(self) -> None:
        """Close all connections."""
        for engine in self.engines:
            await engine.replicas.aclose()
            await engine.upstream.aclose()


def _affinity(prompt_head: bytes, name: str) -> bytes:
    return hashlib.blake2b(prompt_head, digest_size=8, key=hashlib.sha256(name.encode()).digest()).digest()
