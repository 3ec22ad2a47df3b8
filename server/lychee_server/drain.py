"""Graceful shutdown: open requests get some time to finish, then an error they can read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import uvicorn

from lychee_server.protocol import guarded

if TYPE_CHECKING:
    import socket

    from lychee_server.settings import Settings

# For what is left to do after the last error has been written: abort calls, closing sockets.
_BACKSTOP_SECONDS = 5.0


class Drain:
    """The state of a shutdown: not begun, running, over."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._over: asyncio.Future[None] | None = None
        self.begun = False

    def begin(self) -> None:
        """Start the clock; must be called on the event loop."""
        if not self.begun:
            self.begun = True
            asyncio.get_running_loop().call_later(self._timeout, self.over().set_result, None)

    def over(self) -> asyncio.Future[None]:
        """Return what is done when open requests must end. All requests share it: nobody may cancel it."""
        if self._over is None:
            self._over = asyncio.get_running_loop().create_future()
        return self._over


class DrainingServer(uvicorn.Server):
    """uvicorn, with guarded connections, and with the drain begun when it stops to accept connections."""

    def __init__(self, config: uvicorn.Config, drain: Drain, settings: Settings) -> None:
        config.http = guarded(settings)
        # uvicorn cancels handlers without a word at its own timeout: it only serves as a backstop here.
        config.timeout_graceful_shutdown = int(settings.drain_timeout + _BACKSTOP_SECONDS) + 1
        super().__init__(config)
        self._drain = drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin the drain, then do what uvicorn does."""
        self._drain.begin()
        await super().shutdown(sockets)
