"""uvicorn's HTTP/1.1 protocol with what it lacks: limits on headers and trailers, and on times to send and to read."""

from __future__ import annotations

import functools
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lychee_server.errors import BodyTooSlow, GatewayError, HeadersTooLarge, InvalidRequest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from lychee_server.settings import Settings

# The application answers 408 at its own timeout; then whoever still sends a body is cut off.
_BODY_GRACE_SECONDS = 2.0
_CLOSING_SECONDS = 5.0  # what is still to be written when a connection closes must get shorter from look to look
_HEADER_EXTRA = len(": \r\n")


class _WatchedTransport:
    """A transport that says when it is told to close; uvicorn does that in several places."""

    def __init__(self, transport: asyncio.Transport, closed: Callable[[], None]) -> None:
        self._transport = transport
        self._closed = closed
        self.write = transport.write  # found without `__getattr__`: it is called for every chunk

    def close(self) -> None:
        self._transport.close()
        self._closed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


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
        self._trailer_bytes = 0
        self._idle_bytes = 0  # since the body's last byte: chunk sizes and trailers that do not end
        self._message_ended = False
        self._closing: asyncio.TimerHandle | None = None
        self._refusal: GatewayError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Start the clock for the first request's headers."""
        super().connection_made(cast("asyncio.Transport", _WatchedTransport(transport, self._begin_closing)))
        self._set_deadline(self._header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._clear_deadline()
        if self._closing is not None:
            self._closing.cancel()
        super().connection_lost(exc)

    def _begin_closing(self) -> None:
        if self._closing is None:
            self._look_at_closing(None)

    def _look_at_closing(self, before: int | None) -> None:
        """Give up a connection that closes and whose client reads nothing: its buffer would stay for good."""
        left = self.transport.get_write_buffer_size()
        if not left:
            return
        if before is not None and left >= before:
            self.transport.abort()
            return
        self._closing = self.loop.call_later(_CLOSING_SECONDS, self._look_at_closing, left)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and refuse a request whose headers do not end."""
        if self._refusal is not None:
            return
        self._message_ended = False
        self._idle_bytes += len(data)
        super().data_received(data)
        if self._message_ended:
            return  # the data began with the message before: how much of it is this one's head is not known
        if self._in_head:
            self._head_bytes += len(data)
        counted = max(self._head_bytes if self._in_head else 0, self._idle_bytes)
        if counted > self._max_header_bytes and not self.transport.is_closing():
            self._refusal = self._too_large()
            self.send_400_response("")

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; of a trailer only the length."""
        if self._in_head:
            super().on_header(name, value)
            return
        self._trailer_bytes += len(name) + len(value) + _HEADER_EXTRA
        if self._trailer_bytes > self._max_header_bytes:
            self._refusal = self._too_large()
            raise self._refusal  # as in `on_headers_complete`

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_begin(self) -> None:
        """Start the clock for a request's headers."""
        self._in_head, self._head_bytes, self._trailer_bytes = True, 0, 0
        self._set_deadline(self._header_timeout)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the size of the headers, then start the clock for the body."""
        size = len(self.url) + sum(len(name) + len(value) + _HEADER_EXTRA for name, value in self.headers)
        if size > self._max_header_bytes:
            self._refusal = self._too_large()
            raise self._refusal  # uvicorn turns it into a call of `send_400_response`
        self._in_head, self._idle_bytes = False, 0
        self._set_deadline(self._body_timeout)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the clock."""
        self._clear_deadline()
        self._message_ended, self._idle_bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Write an error in OpenAI's shape, in place of uvicorn's plain text, and close the connection."""
        if self._answering and self.cycle.response_started:
            self.transport.close()  # what was written now would be part of the answer
            return
        error = self._refusal or InvalidRequest(f"this is not HTTP/1.1: {msg}", code="invalid_http")
        content = json.dumps(error.body()).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()

    def _too_large(self) -> GatewayError:
        what = "request line and headers" if self._in_head else "trailers"
        return HeadersTooLarge(f"{what} are longer than {self._max_header_bytes} bytes")

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
        if self._in_head and not self._answering:
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
