"""A client that keeps all that an answer says of itself, and the judgement whether it is the right one."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx

from lychee_sgl.bench.router_requests import CHAT, TOLD

if TYPE_CHECKING:
    from lychee_sgl.bench.router_requests import Asked

_DIGITS = re.compile(r"\D*(\d+)")


@dataclass(slots=True)
class Heard:
    """One answer as its client saw it.

    Attributes:
        status: HTTP status; 0: none came.
        text: of the answer, put together from its chunks.
        ids: every `id` that answer or chunks had.
        chunks: those with text.
        usage: of the answer, where it had one.
        lychee: our object.
        finish: the reason.
        error: the error object, or what was wrong with the connection.
        done: the answer was complete.
        closed: the stream ended with `[DONE]`, or the answer came in one piece.
        left: the client left, as it was to.
        hung: the client gave up.
        began: `time.perf_counter()` when the request was sent.
        ended: and when all was over.
    """

    status: int = 0
    text: str = ""
    ids: set[str] = field(default_factory=set)
    chunks: int = 0
    usage: dict[str, Any] | None = None
    lychee: dict[str, Any] | None = None
    finish: str | None = None
    error: Any = None
    done: bool = False
    closed: bool = False
    left: bool = False
    hung: bool = False
    began: float = 0.0
    ended: float = 0.0


async def converse(session: aiohttp.ClientSession, url: str, asked: Asked, limit: float) -> Heard:
    """Send a request and follow its answer; never raises for what the servers do.

    Args:
        session: of `gateway_parts.client`.
        url: the gateway's address.
        asked: the request.
        limit: seconds after which the answer counts as hung.
    """
    heard = Heard(began=time.perf_counter())
    try:
        async with asyncio.timeout(asked.leave_seconds or limit):
            await _follow(session, url + asked.path, asked, heard)
    except TimeoutError:
        heard.left, heard.hung = asked.leave_seconds > 0, asked.leave_seconds == 0
    except (aiohttp.ClientError, ValueError) as error:  # ValueError: no JSON
        heard.error = f"{type(error).__name__}: {error}"
    heard.ended = time.perf_counter()
    return heard


async def _follow(session: aiohttp.ClientSession, url: str, asked: Asked, heard: Heard) -> None:
    headers = {"content-type": "application/json", "traceparent": asked.trace}
    async with session.post(url, data=json.dumps(asked.body).encode(), headers=headers) as response:
        heard.status = response.status
        if response.content_type != "text/event-stream":
            take(heard, json.loads(await response.read()))
            heard.closed, heard.done = True, heard.error is None
            return
        async for line in response.content:
            if line.startswith(b"data: [DONE]"):
                heard.closed, heard.done = True, heard.error is None
                return
            if line.startswith(b"data: "):
                take(heard, json.loads(line[6:]))
            if asked.leave_chunks and heard.chunks == asked.leave_chunks:
                heard.left = True
                return


def take(heard: Heard, said: dict[str, Any]) -> None:
    """Add what an answer or a chunk of one says."""
    if "error" in said:
        heard.error = said["error"]
        return
    heard.ids.add(str(said.get("id")))
    heard.usage = said.get("usage") or heard.usage
    heard.lychee = said.get("lychee") or heard.lychee
    for choice in said.get("choices", ()):
        words = choice.get("delta") or choice.get("message") or {}
        text = words.get("content") or choice.get("text") or ""
        heard.text += text
        heard.chunks += bool(text)
        heard.finish = choice.get("finish_reason") or heard.finish


def openai_shaped(error: Any) -> bool:
    """Whether an error has OpenAI's fields."""
    return (
        isinstance(error, dict)
        and {"message", "type", "param", "code"} <= error.keys()
        and isinstance(error["message"], str)
        and isinstance(error["type"], str)
    )


def outcome(asked: Asked, heard: Heard) -> str:
    """Say in one word how a request ended; `hung` and `broken` are what must not be."""
    if heard.hung:
        return "hung"
    if heard.done:
        return "answered"
    if heard.error is not None:
        return "refused" if heard.status == httpx.codes.BAD_REQUEST and asked.not_allowed else "error"
    return "left" if heard.left else "broken"


def told(mark: str, text: str) -> bool | None:
    """Whether an answer begins with the digits that only its number has; None where it has too few to tell."""
    digits = _digits(text)[:TOLD]
    if not mark.startswith(digits):
        return False
    return True if len(digits) == TOLD else None


def slipped(mark: str, text: str) -> bool:
    """Whether an answer begins with its own digits and goes on with others: a model's slip, or a wrong token."""
    return bool(told(mark, text)) and not mark.startswith(_digits(text)[: len(mark)])


def _digits(text: str) -> str:
    found = _DIGITS.match(text)
    return found[1] if found else ""


def mismatches(asked: Asked, heard: Heard, prompt_tokens: int, default_budget: object) -> list[str]:
    """Say in what a complete answer differs from what was asked.

    Args:
        asked: the request.
        heard: its answer.
        prompt_tokens: that its prompt has.
        default_budget: of the engines' head plan.
    """
    lychee = heard.lychee or {}
    expected: dict[str, tuple[object, object]] = {
        "ids": (1, len(heard.ids)),
        "finish": ("length", heard.finish),
        "context_tokens": (prompt_tokens + asked.tokens, lychee.get("context_tokens")),
    }
    field_ = asked.body.get("lychee", {})
    if "mode" in field_:
        expected["mode"] = (field_["mode"], lychee.get("mode"))
    elif field_.get("budget") != "auto":
        expected["budget"] = (field_.get("budget", default_budget), lychee.get("budget"))
    if field_.get("budget") == "dense":
        expected["attended_fraction"] = (1.0, lychee.get("attended_fraction"))
    if not asked.stream or "stream_options" in asked.body:
        usage = heard.usage or {}
        expected["prompt_tokens"] = (prompt_tokens, usage.get("prompt_tokens"))
        expected["completion_tokens"] = (asked.tokens, usage.get("completion_tokens"))
    if asked.not_allowed:
        expected["status"] = (httpx.codes.BAD_REQUEST.value, heard.status)
    return [f"{name} is {got!r}, not {wanted!r}" for name, (wanted, got) in expected.items() if wanted != got]


def alone(asked: Asked, top: int) -> dict[str, Any]:
    """Return the body that asks an engine itself for the same answer, in one piece, with the alternatives' weights."""
    body = {key: value for key, value in asked.body.items() if key not in ("lychee", "stream_options")}
    params = {f"lychee_{key}": value for key, value in asked.body.get("lychee", {}).items()}
    weights: dict[str, Any] = {"logprobs": True, "top_logprobs": top} if asked.path == CHAT else {"logprobs": top}
    return {**body, **weights, "stream": False, **({"custom_params": params} if params else {})}
