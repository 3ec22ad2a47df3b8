"""Around every request: its id, its place in the metrics, its log line."""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from lychee_server.errors import CLIENT_GONE, NoSuchTier, NotAuthenticated, error_response
from lychee_server.keys import ANONYMOUS
from lychee_server.telemetry import trace_id

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lychee_server.drain import Drain
    from lychee_server.keys import Authentication, Caller
    from lychee_server.metrics import GatewayMetrics

log = logging.getLogger(__name__)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
MODELS = "/v1/models"
_ASKED = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS)
_GUARDED = "/v1/"
_UNCOUNTED = ("/livez", "/readyz", "/health", "/metrics", "/")
_PAGE_FILES = "/page/"
_ID_HEADER = "x-request-id"
_LONGEST_ID = 128


@dataclass(slots=True)
class RequestRecord:
    """What is noted about a request while it runs.

    Attributes:
        request_id: the client's, or a new one.
        started: `time.perf_counter()` at its begin.
        trace_id: of the W3C trace context it came with.
        status: what it ended with; set by whoever knows better than the status line that was sent.
    """

    request_id: str
    started: float
    status: int | None = None
    trace_id: str | None = None


class RequestMiddleware:
    """Gives each request a `RequestRecord` and a `Caller` in its state, and counts it when it ends.

    Paths under /v1 are for callers with a valid key. Probes, metrics and pages are open.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authentication: Authentication,
        metrics: GatewayMetrics,
        drain: Drain,
        retry_after: int,
        access_log: bool,
    ) -> None:
        self._app = app
        self._authentication = authentication
        self._metrics = metrics
        self._drain = drain
        self._retry_after = retry_after
        self._level = logging.INFO if access_log else logging.DEBUG

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace = trace_id(headers.get("traceparent"))
        record = RequestRecord(_request_id(headers), time.perf_counter(), trace_id=trace)
        state = scope.setdefault("state", {})
        state["record"], state["caller"] = record, ANONYMOUS
        sent_status, counted = 500, False
        path = scope["path"]
        completion = path in _ASKED

        def count() -> None:
            nonlocal counted
            if not counted:
                counted = True
                self._note(scope["method"], path, record, record.status or sent_status, state["caller"])
                if completion:
                    self._metrics.request_left()

        async def send_with_id(message: Message) -> None:
            nonlocal sent_status
            if message["type"] == "http.response.start":
                sent_status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[_ID_HEADER] = record.request_id
                if self._drain.begun:
                    # uvicorn forgets connections that it accepts while it stops: they would be kept alive.
                    headers["connection"] = "close"
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                count()  # first: whoever has read the whole answer finds it counted
            await send(message)

        if completion:
            self._metrics.request_started()
        try:
            if path.startswith(_GUARDED):
                state["caller"] = self._authentication.caller(headers.get("authorization"))
            await self._app(scope, receive, send_with_id)
        except (NotAuthenticated, NoSuchTier) as error:  # the application's own handlers are further inside
            self._metrics.refused("no_key")
            await error_response(error, self._retry_after)(scope, receive, send_with_id)
        except Exception:  # broad: it goes on to the server; a status of 200 may have been sent by now
            record.status = 500
            raise
        finally:
            count()

    def _note(self, method: str, path: str, record: RequestRecord, status: int, caller: Caller) -> None:
        if path not in _UNCOUNTED and not path.startswith(_PAGE_FILES):
            self._metrics.request_counted(_route(path), status)
        if status == CLIENT_GONE:
            self._metrics.client_left()
        log.log(
            self._level,
            "request",
            extra={
                "request_id": record.request_id,
                "method": method,
                "path": path,
                "caller": caller.id,
                "trace_id": record.trace_id,
                "status": status,
                "seconds": round(time.perf_counter() - record.started, 4),
            },
        )


def _route(path: str) -> str:
    """Return a path's name in the metrics; everything that is not served is one name."""
    if path in _ASKED:
        return path
    return MODELS if path == MODELS or path.startswith(f"{MODELS}/") else "other"


def _request_id(headers: Headers) -> str:
    given = headers.get(_ID_HEADER, "")
    valid = 0 < len(given) <= _LONGEST_ID and given.isascii() and given.isprintable()
    return given if valid else uuid.uuid4().hex
