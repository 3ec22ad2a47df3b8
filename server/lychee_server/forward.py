"""Carries one checked completion to the engine and its answer back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from lychee_server.budget import headers_after, headers_before
from lychee_server.errors import (
    CLIENT_GONE,
    EngineFailed,
    EngineLost,
    EngineUnavailable,
    EngineUnreachable,
    GatewayError,
    ShuttingDown,
    engine_error,
)
from lychee_server.sse import EventSplitter, dump_json, parse_object

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine

    from starlette.types import Receive, Scope, Send

    from lychee_server.admission import Admission, Place
    from lychee_server.body import Completion
    from lychee_server.drain import Drain
    from lychee_server.health import EngineInfo
    from lychee_server.keys import Authentication, Caller
    from lychee_server.limits import Limits
    from lychee_server.metrics import GatewayMetrics
    from lychee_server.middleware import RequestRecord
    from lychee_server.policy.runtime import BudgetPolicy
    from lychee_server.pool import Engine, EnginePool
    from lychee_server.reload import Reloads
    from lychee_server.settings import Settings
    from lychee_server.speed import SpeedReference
    from lychee_server.tally import AnswerTally
    from lychee_server.telemetry import Tracing
    from lychee_server.upstream import EngineResponse

    _End = Callable[[], Awaitable[None]]

log = logging.getLogger(__name__)

_END_SECONDS = 0.05


class _ClientGone(Exception):
    """The client has closed its connection, or has stopped reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The parts that a request needs, made once by `create_app`."""

    settings: Settings
    engines: EnginePool
    budgets: BudgetPolicy
    metrics: GatewayMetrics
    authentication: Authentication
    limits: Limits
    admission: Admission
    drain: Drain
    reloads: Reloads
    tracing: Tracing
    speed: SpeedReference


class EngineAnswer(Response):
    """The response to one completion. All of the work happens while it is being sent.

    So every resource (the slot, the connection to the engine, the watch for the client) is held by a block of
    this call and by nothing else, and an error before the first byte still becomes a status of its own.
    """

    def __init__(
        self,
        gateway: Gateway,
        engine: EngineInfo | None,
        completion: Completion,
        path: str,
        trace: dict[str, str],
        *,
        record: RequestRecord,
        caller: Caller,
        tally: AnswerTally,
    ) -> None:
        self._gateway = gateway
        self._engine = engine
        self._completion = completion
        self._path = path
        self._trace = trace
        self._record = record
        self._caller = caller
        self._tally = tally
        self._streaming = False
        self._waited_seconds = 0.0  # in the line, and for the client to read
        self._asked: Engine | None = None  # the engine that may be working on it
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request and answer it; raises `GatewayError` as long as nothing has been sent."""
        try:
            await self._answer(scope, receive, send)
        finally:
            if not self._tally.done and self._asked is not None:
                # The place is free and the charge is made: neither waits for an engine that may be away.
                await self._asked.replicas.abort(self._completion.rids)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        priority = gateway.limits.priority(self._caller)
        with (
            gateway.limits.open(self._caller, len(self._completion.body)) as lease,
            gateway.admission.place(self._caller.id, priority) as place,
        ):
            try:
                end = await self._first_of(self._work(place, scope, receive, send), receive)
            except _ClientGone:
                self._record.status = CLIENT_GONE
                return
            except GatewayError as error:
                if not self._streaming:
                    raise
                end = self._broken(error, send)
            finally:
                lease.settle(self._tokens(lease.reserved))
        # What it held is free before the client has all of its answer, for then its next request may be on its way;
        # nor does a client that reads its last bytes slowly keep a place at an engine that is done.
        try:
            await end()
        except _ClientGone:
            self._record.status = CLIENT_GONE

    def _tokens(self, reserved: float) -> float:
        """Return the tokens that the caller is charged: where they are not known, its body's size and its chunks."""
        known = self._tally.tokens()
        if known is not None:
            prompt, generated = known
            return (prompt or reserved) + generated  # of several choices without usage the prompt is not known
        return reserved + self._tally.outputs if self._asked is not None else 0.0

    async def _first_of(self, work: Coroutine[None, None, _End], receive: Receive) -> _End:
        """Do the work, unless the client leaves or the shutdown's time is over before."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_until_client_leaves(receive))
        tasks: set[asyncio.Future[Any]] = {working, leaving}
        try:
            done, _ = await asyncio.wait({*tasks, self._gateway.drain.over()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if working in done:
            return working.result()
        if leaving in done:
            raise _ClientGone
        raise ShuttingDown("the gateway is shutting down; the answer could not be completed in time")

    async def _work(self, place: Place, scope: Scope, receive: Receive, send: Send) -> _End:
        """Wait for a place, then ask one engine after the other, until one answers or refuses.

        Returns:
            What sends the end of the answer, or all of it; it is counted by then.
        """
        began = time.perf_counter()
        await place.enter()
        self._waited_seconds = time.perf_counter() - began
        engines = self._gateway.engines
        tried: list[Engine] = []
        while True:
            engine = engines.choose(self._completion.head, tried)
            try:
                with engine.hold():
                    answer = await self._ask(engine, send)
                break
            except EngineUnavailable as error:
                tried.append(engine)
                # What broke after the engine had the request may have run, or may have been what broke it.
                may_have_run = self._streaming or isinstance(error, EngineLost)
                if may_have_run or not engines.has_another(tried):
                    raise
                self._gateway.metrics.engine_retried(engine.name)
                log.warning(
                    "a request goes to another engine",
                    extra={"request_id": self._record.request_id, "engine": engine.name, "error": error.message},
                )
        # Counted before it leaves: most clients read no further than [DONE], and close the connection.
        if self._tally.failed is None:
            self._tally.finish()
            self._answered(engine)
        else:
            self._record.status = self._tally.failed
        if isinstance(answer, Response):
            return functools.partial(answer, scope, receive, send)
        return functools.partial(self._send, answer, send, more=False)

    def _answered(self, engine: Engine) -> None:
        """Count a complete answer."""
        gateway, took = self._gateway, time.perf_counter() - self._record.started
        gateway.metrics.request_answered(took)
        summary = self._tally.summary
        if summary is not None:
            gateway.speed.answered(engine.name, summary, self._completion.choices)
            # of a document the engine's time is that of all calls, also of those that ran at one time
            if summary.engine_seconds is not None and summary.memory is None:
                gateway.metrics.overhead(took - summary.engine_seconds - self._waited_seconds)

    async def _ask(self, engine: Engine, send: Send) -> Response | bytes:
        """Send the request to an engine; returns its answer, or the last piece of a stream that has been sent."""
        settings = self._gateway.settings
        silence = settings.stream_idle_timeout if self._completion.stream else settings.response_timeout
        self._asked = engine
        try:
            async with engine.upstream.open(self._path, self._completion.body, self._trace, silence) as answer:
                engine.replicas.answered(answer.routed_to)
                if answer.status >= 400:
                    body = await answer.read()
                    self._asked = None  # it has refused: nothing is left to abort
                    raise engine_error(answer.status, body)
                if answer.is_event_stream:
                    return await self._relay_events(engine, answer, send)
                body = await answer.read()
        except EngineUnreachable:
            self._asked = None
            raise
        return self._whole(body)

    def _whole(self, body: bytes) -> Response:
        parsed = parse_object(body)
        if parsed is None:
            raise EngineFailed("the engine's answer is not a JSON object")
        reduced = self._tally.whole(parsed)
        if reduced is None:
            return Response(body, media_type="application/json", headers=self._known_headers())
        return Response(dump_json(parsed), media_type="application/json", headers=headers_after(reduced))

    def _known_headers(self) -> dict[str, str]:
        decision, sparsity = self._completion.decision, self._engine.sparsity if self._engine else None
        return headers_before(decision, sparsity.defaults) if sparsity and decision else {}

    async def _relay_events(self, engine: Engine, answer: EngineResponse, send: Send) -> bytes:
        await self._start_stream(answer.content_type, send)
        splitter, begun, last = EventSplitter(), False, b""
        async with contextlib.aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                if not begun:
                    engine.answering()
                    begun = True
                events = b"".join(self._tally.event(event) for event in splitter.feed(chunk))
                if self._tally.done:
                    last = events
                    self._waited_seconds += await _until_end(chunks)
                    break
                if events:
                    await self._send(events, send)
        if not self._tally.done:
            raise EngineLost("the engine ended the stream before the answer was complete")
        return last

    async def _start_stream(self, content_type: str, send: Send) -> None:
        headers = {
            "content-type": content_type,
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # nginx would collect the chunks
            **self._known_headers(),
        }
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        self._streaming = True

    async def _send(self, data: bytes, send: Send, *, more: bool = True) -> None:
        """Send a piece of a stream; a client that takes nothing for too long counts as gone."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._gateway.settings.stream_idle_timeout):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise _ClientGone from None
        finally:
            self._waited_seconds += time.perf_counter() - began

    def _broken(self, error: GatewayError, send: Send) -> _End:
        """Take note of a stream that broke; returns what sends its end."""
        self._record.status = error.status
        log.warning("a stream broke", extra={"request_id": self._record.request_id, "error": error.message})
        end = b"" if self._tally.done else self._tally.broken(error)
        return functools.partial(self._send, end, send, more=False)


async def _until_end(chunks: AsyncGenerator[bytes, None]) -> float:
    """Wait a moment for the end behind [DONE], for a connection that was read to its end can be used again.

    Returns:
        The seconds that it took.
    """
    began = time.perf_counter()
    with contextlib.suppress(GatewayError, TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            async for _ in chunks:
                pass
    return time.perf_counter() - began


async def _until_client_leaves(receive: Receive) -> None:
    # The body has been read: the next thing a server has to say is that the client is gone.
    while (await receive())["type"] != "http.disconnect":
        pass
