"""The HTTP client of one engine behind the gateway. Every failure leaves here as a `GatewayError`."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
from yarl import URL

from lychee_server.errors import (
    EngineFailed,
    EngineLost,
    EngineTimeout,
    EngineUnreachable,
    GatewayError,
    NoSuchModel,
)
from lychee_server.replicas import ROUTED_TO

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence

    from lychee_server.settings import Settings

log = logging.getLogger(__name__)

# SGLang closes idle connections after five seconds; one that is reused at that moment is a failed request.
_KEEPALIVE_SECONDS = 2.0
_ABORT_SECONDS = 5.0  # of all prompts of a request
_WRITTEN_AT_ONCE = 2**20  # longer bodies go out in pieces, with the loop's other work in between


class EngineResponse:
    """An answer of the engine whose status is known and whose body is still arriving."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.content_type: str = response.headers.get("content-type", "")
        self.routed_to: str | None = response.headers.get(ROUTED_TO)

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
            async for chunk in self._response.content.iter_any():
                yield chunk

    async def read(self) -> bytes:
        """Return the whole body; raises as `chunks`."""
        with _as_gateway_errors():
            return await self._response.read()


class Upstream:
    """One engine, spoken to over HTTP.

    The client is aiohttp's: for a streamed answer its parser in C takes a fraction of the time that httpx takes.
    """

    def __init__(self, url: str, connect_timeout: float, silence: float, api_key: str | None = None) -> None:
        """Nothing is opened or sent yet.

        Args:
            url: the engine's address, without a slash at the end.
            connect_timeout: wait for a connection, in seconds.
            silence: longest wait for the next byte where a call names none, in seconds.
            api_key: sent to the engine as a bearer token.
        """
        self.url = url
        self._base = str(URL(url)).rstrip("/")
        self._connect_timeout = connect_timeout
        self._silence = silence
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    @classmethod
    def connect(cls, settings: Settings, url: str) -> Upstream:
        """Make the client of one of the engines in `settings`."""
        key = settings.engine_api_key
        return cls(
            url,
            connect_timeout=settings.connect_timeout,
            silence=settings.stream_idle_timeout,
            api_key=key.get_secret_value() if key else None,
        )

    def _client(self) -> aiohttp.ClientSession:
        # aiohttp ties a session to the running loop, so it is made by the first call. Admission bounds the number
        # of connections, so nothing else does; neither a proxy of the environment nor cookies are meant for an engine.
        if self._closed:  # a replica that its router dropped, asked by who had it from before
            raise EngineUnreachable("the engine cannot be reached; try again later")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=self._timeout(self._silence),
                auto_decompress=False,
                skip_auto_headers=("user-agent", "accept-encoding"),
            )
        return self._session

    def _address(self, path: str) -> URL:
        # Taken as it is: yarl resolves `..` otherwise, and a path that was checked becomes another one.
        return URL(self._base + path, encoded=True)

    def _timeout(self, silence: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout, sock_read=silence)

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
        with _as_gateway_errors():
            response = await self._client().post(
                self._address(path),
                data=body if len(body) <= _WRITTEN_AT_ONCE else io.BytesIO(body),
                headers={"content-type": "application/json", **headers},
                timeout=self._timeout(silence),
                allow_redirects=False,
            )
        try:
            yield EngineResponse(response)
        finally:
            response.close()

    async def get(self, path: str, timeout: float) -> tuple[int, bytes]:
        """Return status and body of a GET that may take `timeout` seconds in all; raises as `open`."""
        try:
            async with asyncio.timeout(timeout):
                with _as_gateway_errors():
                    async with self._client().get(self._address(path), allow_redirects=False) as response:
                        return response.status, await response.read()
        except TimeoutError:
            raise EngineTimeout(f"the engine did not answer {path} within {timeout:g} seconds") from None

    async def get_model(self, model: str, timeout: float) -> tuple[int, bytes]:
        """Return status and body of one model's card.

        Args:
            model: its name, decoded.
            timeout: of the whole call, in seconds.

        Raises:
            NoSuchModel: the name would leave the path of the models, to where the engine's key must not go.
            EngineUnreachable, EngineLost, EngineTimeout: as `open`.
        """
        if any(segment in ("", ".", "..") for segment in model.split("/")):
            raise NoSuchModel(f"the model {model!r:.200} does not exist", param="model")
        return await self.get(f"/v1/models/{quote(model, safe='/')}", timeout)

    async def abort(self, rids: Sequence[str]) -> None:
        """Tell the engine to drop requests; an engine that cannot be told has dropped them or will time out."""
        address = self._address("/abort_request")
        delivered = 0
        try:
            async with asyncio.timeout(_ABORT_SECONDS):
                with _as_gateway_errors():
                    for rid in rids:
                        async with self._client().post(address, json={"rid": rid}) as response:
                            await response.read()
                        if response.status >= 400:  # as where SGLang wants its --admin-api-key for it
                            raise EngineFailed(f"its /abort_request answers {response.status}")
                        delivered += 1
        except (GatewayError, TimeoutError) as error:
            log.warning("abort was not delivered", extra={"rid": rids[delivered], "error": str(error)})

    async def aclose(self) -> None:
        """Close all connections; calls from here on raise `EngineUnreachable`."""
        self._closed = True
        if self._session is not None:
            await self._session.close()


@contextlib.contextmanager
def _as_gateway_errors() -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise EngineUnreachable("the engine cannot be reached; try again later") from error
    except aiohttp.ServerTimeoutError as error:
        raise EngineTimeout("the engine was silent for too long; the request was given up") from error
    except aiohttp.ClientError as error:
        raise EngineLost("the connection to the engine broke before the answer was complete") from error
