"""The HTTP client of the one engine behind the gateway. Every failure leaves here as a `GatewayError`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx

from lychee_server.errors import EngineLost, EngineTimeout, EngineUnreachable, GatewayError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence

    from lychee_server.settings import Settings

log = logging.getLogger(__name__)

# SGLang closes idle connections after five seconds; one that is reused at that moment is a failed request.
_KEEPALIVE_SECONDS = 2.0
_ABORT_SECONDS = 2.0


class EngineResponse:
    """An answer of the engine whose status is known and whose body is still arriving."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.content_type: str = response.headers.get("content-type", "")

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is a stream of server-sent events."""
        return self.content_type.startswith("text/event-stream")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives.

        Raises:
            EngineLost: the connection broke.
            EngineTimeout: nothing arrived for the time given to `Upstream.open`.
        """
        with _as_gateway_errors():
            async for chunk in self._response.aiter_bytes():
                yield chunk

    async def read(self) -> bytes:
        """Return the whole body; raises as `chunks`."""
        with _as_gateway_errors():
            return await self._response.aread()


class Upstream:
    """One engine, spoken to over HTTP."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @classmethod
    def connect(cls, settings: Settings) -> Upstream:
        """Make the client; nothing is sent yet. The number of connections is bounded by admission."""
        return cls(
            httpx.AsyncClient(
                base_url=settings.engine_url,
                timeout=httpx.Timeout(settings.stream_idle_timeout, connect=settings.connect_timeout, pool=None),
                limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_SECONDS),
                trust_env=False,  # a proxy of the environment is not meant for the engine
            )
        )

    @contextlib.asynccontextmanager
    async def open(
        self, path: str, body: bytes, headers: Mapping[str, str], silence: float
    ) -> AsyncIterator[EngineResponse]:
        """Post a JSON body and give the answer as soon as its status is known.

        Args:
            path: the engine's path.
            body: JSON.
            headers: further request headers.
            silence: longest wait for the next byte, the first included, in seconds.

        Raises:
            EngineUnreachable: no connection.
            EngineLost: the connection broke.
            EngineTimeout: silence.
        """
        timeout = httpx.Timeout(silence, connect=self._client.timeout.connect, pool=None)
        request = self._client.build_request(
            "POST", path, content=body, headers={"content-type": "application/json", **headers}, timeout=timeout
        )
        with _as_gateway_errors():
            response = await self._client.send(request, stream=True)
        try:
            yield EngineResponse(response)
        finally:
            await response.aclose()

    async def get(self, path: str, timeout: float) -> tuple[int, bytes]:
        """Return status and body of a GET that may take `timeout` seconds in all; raises as `open`."""
        try:
            async with asyncio.timeout(timeout):
                with _as_gateway_errors():
                    response = await self._client.get(path)
        except TimeoutError:
            raise EngineTimeout(f"the engine did not answer {path} within {timeout:g} seconds") from None
        return response.status_code, response.content

    async def get_model(self, model: str, timeout: float) -> tuple[int, bytes]:
        """Return status and body of one model's card; raises as `open`."""
        return await self.get(f"/v1/models/{quote(model, safe='/')}", timeout)

    async def abort(self, rids: Sequence[str]) -> None:
        """Tell the engine to drop requests; an engine that cannot be told has dropped them or will time out."""
        for rid in rids:
            try:
                async with asyncio.timeout(_ABORT_SECONDS):
                    with _as_gateway_errors():
                        await self._client.post("/abort_request", json={"rid": rid})
            except (GatewayError, TimeoutError) as error:
                log.warning("abort was not delivered", extra={"rid": rid, "error": str(error)})
                return

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


@contextlib.contextmanager
def _as_gateway_errors() -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise EngineUnreachable("the engine cannot be reached; try again later") from error
    except httpx.TimeoutException as error:
        raise EngineTimeout("the engine was silent for too long; the request was given up") from error
    except httpx.TransportError as error:
        raise EngineLost("the connection to the engine broke before the answer was complete") from error
