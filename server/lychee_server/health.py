"""Watches one engine: is it there, has it generated a token since its start, what is its plan."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lychee_server.errors import EngineLost, EngineUnavailable, EngineUnreachable, GatewayError
from lychee_server.schemas import SparsityInfo
from lychee_server.sse import parse_object

if TYPE_CHECKING:
    from lychee_server.metrics import GatewayMetrics
    from lychee_server.replicas import Replicas
    from lychee_server.settings import Settings
    from lychee_server.speed import SpeedReference
    from lychee_server.upstream import Upstream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What is known of a ready engine.

    Attributes:
        context_window: tokens of prompt and answer together.
        sparsity: plan and defaults; None for an SGLang without our plug-in, which serves dense answers only.
    """

    context_window: int
    sparsity: SparsityInfo | None


class EngineMonitor:
    """Polls one engine and knows whether requests can be sent to it.

    Three states: *away* (no connection), *starting* (connection, no token yet) and *ready*. A ready engine that
    refuses a connection is away at once. One that accepts connections but does not answer /health in time, or
    answers 503, stays in service for `unhealthy_after` seconds: SGLang does so during a long prefill.

    Attributes:
        leaving: its last answer to /health was 503. SGLang says so at once when it is told to stop, goes on taking
            requests, and ends when it has none.
    """

    def __init__(
        self,
        name: str,
        upstream: Upstream,
        metrics: GatewayMetrics,
        settings: Settings,
        speed: SpeedReference,
        replicas: Replicas,
    ) -> None:
        self._name = name
        self._upstream = upstream
        self._replicas = replicas
        self._metrics = metrics
        self._settings = settings
        self._speed = speed
        self._info: EngineInfo | None = None
        self._why_not = "the engine has not been looked at yet"
        self._last_healthy = 0.0
        self._was_ready = False
        self._was_away = False
        self.leaving = False
        self._told_by: tuple[str, ...] = ()  # a router's engines when what is known was asked
        self._look = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether requests can be sent to it."""
        return self._info is not None

    def require(self) -> EngineInfo:
        """Return what is known of the engine.

        Raises:
            EngineUnavailable: it is not ready; the message says why.
        """
        if self._info is None:
            raise EngineUnavailable(f"the engine is not ready: {self._why_not}")
        return self._info

    def report(self, error: GatewayError) -> None:
        """Take note of a failure that a request met: believe a refused connection, look after a broken one."""
        if isinstance(error, EngineUnreachable):
            self._lose(error.message, away=True)
        if isinstance(error, EngineUnreachable | EngineLost):
            self._look.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._look.clear()
            try:
                await self._check()
            except Exception:  # broad: a watcher that died would leave the gateway blind for good
                log.exception("looking at the engine failed", extra={"engine": self._name})
            try:
                async with asyncio.timeout(self._settings.health_interval):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def _check(self) -> None:
        try:
            # a router's /health tells of the router alone
            path = "/readiness" if self._replicas.behind_router else "/health"
            status, _ = await self._upstream.get(path, self._settings.health_timeout)
            problem = "" if status == 200 else f"its {path} answers {status}"
            self.leaving = status == 503
            if self._replicas.behind_router:
                await self._replicas.look(self._settings.health_timeout)
        except EngineUnreachable as error:
            self._lose(error.message, away=True)
            return
        except GatewayError as error:
            problem = error.message
        if self._info is None:
            self._why_not = problem or self._why_not
            if not problem:
                await self._prove()
        elif not problem:
            self._last_healthy = time.monotonic()
            if self._replicas.behind_router and self._replicas.healthy != self._told_by:
                await self._learn_again()
        elif time.monotonic() - self._last_healthy > self._settings.unhealthy_after:
            self._lose(problem, away=False)

    async def _prove(self) -> None:
        """Learn the engine's plan and let it generate a token; on success it is ready."""
        try:
            info = await self._fetch_info()
            self._why_not = "waiting for its first token"
            status, _ = await self._upstream.get("/health_generate", self._settings.ready_timeout)
        except GatewayError as error:
            self._why_not = error.message
            return
        if status != 200:
            self._why_not = f"its /health_generate answers {status}"
            return
        self._last_healthy = time.monotonic()
        if self._was_ready and self._was_away:
            self._metrics.engine_restarted(self._name)
        self._was_ready, self._was_away = True, False
        self._take(info, self._replicas.healthy)
        log.info("the engine is ready", extra={"engine": self._name, "context_window": info.context_window})

    async def _learn_again(self) -> None:
        """Ask once more when a router's engines have changed: the new ones may have another plan or window."""
        told_by = self._replicas.healthy
        try:
            info = await self._fetch_info()
        except GatewayError:
            return  # the next look tries again
        if self._info is None:
            return  # a request has met a refused connection meanwhile
        if info == self._info:
            self._told_by = told_by
        else:
            self._take(info, told_by)
            log.info("the router's engines have changed", extra={"engine": self._name})

    def _take(self, info: EngineInfo, told_by: tuple[str, ...]) -> None:
        self._info, self._told_by = info, told_by
        self._metrics.engine_ready(self._name, info.sparsity.plan if info.sparsity else None)
        self._speed.engine_ready(self._name, info.sparsity)

    async def _fetch_info(self) -> EngineInfo:
        status, body = await self._upstream.get("/lychee/info", self._settings.health_timeout)
        if status == 404 and await self._replicas.look(self._settings.health_timeout):
            status, body = await self._replicas.first("/lychee/info", self._settings.health_timeout)
        if status == 404:
            return await self._fetch_plain_info()
        if status != 200:
            raise EngineUnavailable(f"its /lychee/info answers {status}")
        try:
            sparsity = SparsityInfo.model_validate_json(body)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise EngineUnavailable(f"its /lychee/info cannot be read at {where!r}") from error
        return EngineInfo(context_window=sparsity.context_window, sparsity=sparsity)

    async def _fetch_plain_info(self) -> EngineInfo:
        """Learn the context window of an SGLang without our plug-in from its model list."""
        status, body = await self._replicas.first("/v1/models", self._settings.health_timeout)
        cards = (parse_object(body) or {}).get("data") if status == 200 else None
        window = cards[0].get("max_model_len") if isinstance(cards, list) and cards else None
        if not isinstance(window, int):
            raise EngineUnavailable("it has neither /lychee/info nor a max_model_len in /v1/models")
        log.warning("the engine runs without the lychee plug-in: all answers are dense", extra={"engine": self._name})
        return EngineInfo(context_window=window, sparsity=None)

    def _lose(self, why: str, *, away: bool) -> None:
        if self._info is not None:
            log.warning("the engine is out of service", extra={"engine": self._name, "why": why})
        self._info = None
        self._why_not = why
        self._was_away = self._was_away or away
        self._metrics.engine_lost(self._name)
