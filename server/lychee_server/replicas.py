"""The engines behind a router: what the router does not pass on is asked of them directly (DESIGN.md 12)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError
from yarl import URL

from lychee_server.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lychee_server.metrics import GatewayMetrics
    from lychee_server.upstream import Upstream

log = logging.getLogger(__name__)

ROUTED_TO = "x-smg-routed-worker-id"
"""The router's header that names the replica of an answer."""
_MOST = 256  # replicas whose names may become labels


class _Worker(BaseModel):
    url: str
    is_healthy: bool = True


class _Workers(BaseModel):
    workers: list[_Worker]


class Replicas:
    """What one address of an engine stands for: the engine itself, or a router and the engines behind it.

    Attributes:
        behind_router: whether the address turned out to be a router.
    """

    def __init__(self, name: str, front: Upstream, make: Callable[[str], Upstream], metrics: GatewayMetrics) -> None:
        """Nothing is asked yet.

        Args:
            name: of the address, in the metrics.
            front: its client.
            make: makes the client of a replica.
            metrics: the gateway's.
        """
        self.behind_router = False
        self._name = name
        self._front = front
        self._make = make
        self._metrics = metrics
        self._known: dict[str, Upstream] = {}
        self._healthy: tuple[str, ...] = ()

    async def look(self, timeout: float) -> bool:
        """Ask the address which engines it has, if it is a router; returns whether it is.

        Raises:
            EngineUnreachable, EngineLost, EngineTimeout: as `Upstream.get`.
        """
        status, body = await self._front.get("/workers", timeout)
        workers = _parse(body) if status == 200 else None
        if status == 404:  # an engine: what stood here before, it has no replicas
            self.behind_router, workers = False, []
        elif workers is None:
            return self.behind_router
        else:
            self.behind_router = True
        known = {worker.url.rstrip("/"): worker for worker in workers[:_MOST] if _is_http(worker.url)}
        gone = {url: self._known.pop(url) for url in self._known.keys() - known.keys()}
        for url, worker in known.items():
            if url not in self._known:
                self._known[url] = self._make(url)
                log.info("a replica behind the router", extra={"engine": self._name, "replica": _label(url)})
            self._metrics.replica_seen(self._name, _label(url), up=worker.is_healthy)
        self._healthy = tuple(url for url, worker in known.items() if worker.is_healthy)
        for label in {*map(_label, gone)} - {*map(_label, known)}:  # another password is the same replica
            self._metrics.replica_gone(self._name, label)
        for upstream in gone.values():  # last: while one closes, a request may ask who is there
            await upstream.aclose()
        return self.behind_router

    @property
    def healthy(self) -> tuple[str, ...]:
        """The addresses of a router's engines that it takes for healthy."""
        return self._healthy

    def direct(self) -> tuple[Upstream, ...]:
        """Whom to ask what a router does not pass on: the engine, or the router's healthy engines."""
        return tuple(self._known[url] for url in self._healthy) if self.behind_router else (self._front,)

    def answered(self, routed_to: str | None) -> None:
        """An answer has begun, of this replica by the router's word; None: the address is no router's."""
        if routed_to is not None and routed_to.rstrip("/") in self._known:
            self._metrics.replica_answered(self._name, _label(routed_to))

    async def abort(self, rids: Sequence[str]) -> None:
        """Tell every engine that may have the requests to drop them: a name is only known where it was given."""
        await asyncio.gather(*(upstream.abort(rids) for upstream in self.direct()))

    async def first(self, path: str, timeout: float) -> tuple[int, bytes]:
        """Return status and body of the first engine that answers a GET at all.

        Raises:
            GatewayError: none did; the last one's reason.
        """
        problem: GatewayError | None = None
        for upstream in self.direct():
            try:
                return await upstream.get(path, timeout)
            except GatewayError as error:
                problem = error
        if problem is not None:
            raise problem
        return 503, b""

    async def aclose(self) -> None:
        """Close all connections to replicas."""
        for upstream in self._known.values():
            await upstream.aclose()


def _parse(body: bytes) -> list[_Worker] | None:
    try:
        return _Workers.model_validate_json(body).workers
    except ValidationError:
        return None


def _is_http(url: str) -> bool:
    try:
        parts = URL(url)
        return parts.scheme in ("http", "https") and bool(parts.host)
    except ValueError:  # one such worker is left out, the others are not
        return False


def _label(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]  # without a password
