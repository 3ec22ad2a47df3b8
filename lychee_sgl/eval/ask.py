"""Asks an OpenAI-compatible server, and asks again where it is busy or a connection broke."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import httpx

from lychee_sgl.demo.client import LOCAL_HOSTS
from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.tokens import conversation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from lychee_sgl.eval.config import Settings

TIMEOUT: Final = httpx.Timeout(1800.0, connect=10.0)
BUSY: Final = (429, 502, 503, 504)
BROKEN: Final = ("abort", "error")
"""Finish reasons of answers that the server gave up."""
FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 120.0
"""Seconds between two tries; a `Retry-After` beyond it is not obeyed but ends the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer.

    Attributes:
        text: what the model wrote, without the prefix.
        finish_reason: why it ended.
        prompt_tokens: by the server's account, None where it gives none.
        answer_tokens: likewise.
        first_token_seconds: from the request to the first text; None where there was none.
        seconds: from the request to the end.
        lychee: the answer's object, empty from another server.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    answer_tokens: int | None
    first_token_seconds: float | None
    seconds: float
    lychee: dict[str, Any] = field(default_factory=dict)


class Gone(EvalError):
    """No answer after all tries: the server is not there, or busy all the time."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Refused(EvalError):
    """The server answered with an error; asking again will not help."""


class Asker:
    """One server. Close it after use."""

    def __init__(self, url: str, settings: Settings, *, key: str, retries: int) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._settings = settings
        self._retries = retries
        local = httpx.URL(self.url).host in LOCAL_HOSTS  # a proxy of the environment is not asked for this machine
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=TIMEOUT,
            trust_env=not local,
            limits=httpx.Limits(max_connections=None),
            headers={"authorization": f"Bearer {key}"},
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def model(self) -> str:
        """The first model that is served.

        Raises:
            EvalError: the server cannot be reached, or names none.
        """
        try:
            reply = await self._http.get("/v1/models")
            return str(reply.raise_for_status().json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise EvalError(f"{self.url}/v1/models names no model: {type(error).__name__} {error}") from error

    async def facts(self) -> dict[str, Any]:
        """What one of our servers says of its head plan and versions; empty from another."""
        for path in ("/lychee/info", "/v1/sparsity"):
            try:
                reply = await self._http.get(path)
                found = reply.json() if reply.status_code == httpx.codes.OK else None
            except (httpx.HTTPError, ValueError):
                continue  # another make of server: nothing to note
            if isinstance(found, dict):
                return {key: found[key] for key in ("plan", "dense_below", "version") if found.get(key) is not None}
        return {}

    async def ask(self, model: str, prompt: str, prefix: str, max_tokens: int, fields: Mapping[str, Any]) -> Reply:
        """Ask, and again while the server is busy or the connection breaks.

        Args:
            model: its name.
            prompt: the user's message.
            prefix: words that the answer begins with.
            max_tokens: longest answer.
            fields: further fields of the request.

        Raises:
            Gone: there was no answer after all tries.
            Refused: the server answered with another error.
        """
        path, body = self._request(model, prompt, prefix, max_tokens, fields)
        for again in range(self._retries + 1):
            try:
                return await self._once(path, body)
            except Gone as error:
                wait = min(FIRST_WAIT * 2**again, LONGEST_WAIT) if error.wait is None else error.wait
                if again == self._retries or wait > LONGEST_WAIT:
                    raise
                await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _request(
        self, model: str, prompt: str, prefix: str, max_tokens: int, fields: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        settings = self._settings
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": max_tokens,
            "temperature": settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if settings.api == "completions":
            body["prompt"] = prompt if settings.prefix == "none" else f"{prompt}{prefix}"
        else:
            body["messages"] = conversation(prompt, prefix, how=settings.prefix)
            if body["messages"][-1]["role"] == "assistant":
                body["continue_final_message"] = True
        path = "/v1/completions" if settings.api == "completions" else "/v1/chat/completions"
        return path, {**body, **settings.body, **fields}

    async def _once(self, path: str, body: dict[str, Any]) -> Reply:
        start = time.perf_counter()
        try:
            async with self._http.stream("POST", path, json=body) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    message = f"{response.status_code}: {_message(response)}"
                    if response.status_code in BUSY:
                        raise Gone(message, _retry_after(response.headers.get("retry-after")))
                    raise Refused(message)
                return await _read(response, start)
        except httpx.HTTPError as error:
            raise Gone(f"{type(error).__name__} {error}".strip()) from error


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Lines of an event stream. `aiter_lines` also cuts at U+2028 and the like, which JSON may hold as they are."""
    rest = b""
    async for piece in response.aiter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace").rstrip("\r")
    yield rest.decode(errors="replace")


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in _lines(response):
        if not line.startswith("data:") or line.removeprefix("data:").strip() == "[DONE]":
            continue
        try:
            event = json.loads(line.removeprefix("data:"))
        except ValueError as error:
            raise Refused(f"an event of the answer is no JSON: {line[:200]!r}") from error
        if event.get("error"):
            raise Refused(f"the answer broke off: {event['error']}")
        yield event


async def _read(response: httpx.Response, start: float) -> Reply:
    parts: list[str] = []
    first: float | None = None
    finish: str | None = None
    usage: dict[str, Any] = {}
    lychee: dict[str, Any] = {}
    async for event in _events(response):
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or choice
            piece = delta.get("content") or delta.get("text") or ""
            if first is None and (piece or delta.get("reasoning_content")):
                first = time.perf_counter() - start
            parts.append(piece)
            finish = choice.get("finish_reason") or finish
        usage = event.get("usage") or usage
        lychee = event.get("lychee") or lychee
    if finish is None:
        raise Gone("the answer broke off: its stream ended without a finish reason")
    if finish in BROKEN:
        raise Refused(f"the answer broke off: its finish reason is {finish!r}")
    return Reply(
        text="".join(parts),
        finish_reason=finish,
        prompt_tokens=usage.get("prompt_tokens"),
        answer_tokens=usage.get("completion_tokens"),
        first_token_seconds=first,
        seconds=time.perf_counter() - start,
        lychee=lychee,
    )


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


def _retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After`, which is a number of them or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None
