"""uvicorn's HTTP/1.1 protocol with what it lacks: a limit on headers, and on the time they and the body may take."""

from __future__ import annotations

import functools
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lychee_server.errors import BodyTooSlow, GatewayError, HeadersTooLarge, InvalidRequest

if TYPE_CHECKING:
    import asyncio

    from lychee_server.settings import Settings

# The application answers 408 at its own timeout; then whoever still sends a body is cut off.
_BODY_GRACE_SECONDS = 2.0
_HEADER_EXTRA = len(": \r\n")


class GuardedProtocol(HttpToolsProtocol):
    """One connection. httptools itself takes headers without end, and uvicorn waits for them without end."""

    def __init__(self, *args: Any, max_header_bytes: int, header_timeout: float, body_timeout: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._max_header_bytes = max_header_bytes
        self._header_timeout = header_timeout
        self._body_timeout = body_timeout + _BODY_GRACE_SECONDS
        self._deadline: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_bytes = 0
        self._refusal: GatewayError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Start the clock for the first request's headers."""
        super().connection_made(transport)
        self._set_deadline(self._header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and refuse a request whose headers do not end."""
        if self._refusal is not None:
            return
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._max_header_bytes and not self.transport.is_closing():
                self._refusal = self._too_large()
                self.send_400_response("")

    def on_message_begin(self) -> None:
        """Start the clock for a request's headers."""
        self._in_head, self._head_bytes = True, 0
        self._set_deadline(self._header_timeout)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the size of the headers, then start the clock for the body."""
        self._in_head = False
        size = len(self.url) + sum(len(name) + len(value) + _HEADER_EXTRA for name, value in self.headers)
        if size > self._max_header_bytes:
            self._refusal = self._too_large()
            raise self._refusal  # uvicorn turns it into a call of `send_400_response`
        self._set_deadline(self._body_timeout)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the clock."""
        self._clear_deadline()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Write an error in OpenAI's shape, in place of uvicorn's plain text, and close the connection."""
        error = self._refusal or InvalidRequest(f"this is not HTTP/1.1: {msg}", code="invalid_http")
        content = json.dumps(error.body()).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()

    def _too_large(self) -> GatewayError:
        return HeadersTooLarge(f"request line and headers are longer than {self._max_header_bytes} bytes")

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self._too_slow)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._in_head and not answering:
            self._refusal = BodyTooSlow(f"the headers did not arrive within {self._header_timeout:g} seconds")
            self.send_400_response("")
        else:
            self.transport.close()


def guarded(settings: Settings) -> Any:  # what uvicorn takes for a protocol class
    """Return the protocol with the limits of the settings."""
    return functools.partial(
        GuardedProtocol,
        max_header_bytes=settings.max_header_bytes,
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
    )
