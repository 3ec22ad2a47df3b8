"""Reads a completion request: body, JSON, what must be in it; makes the body that the engine gets."""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import orjson

from lychee_server.budget import merge_custom_params
from lychee_server.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, UnsupportedMediaType

if TYPE_CHECKING:
    from starlette.requests import Request

    from lychee_server.policy.decide import Decision
    from lychee_server.policy.lengths import PromptText


HEAD_CHARACTERS = 4096
"""How much of a prompt the choice of an engine goes by: a document behind a common system prompt still counts."""

MOST_CONTAINERS = 200_000
"""Arrays and objects of one body. Each costs a microsecond while all other requests wait: of a body of 32 MB that held
nothing else it would be many seconds. Texts and token ids, however long, are few."""

MAX_PROMPTS = 1024
"""Prompts of one request: they share its place, and each has to be aborted by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A checked request, ready to be sent.

    Attributes:
        body: JSON for the engine.
        decision: the budget that it gets, and why; None: it gets none from here.
        text: what of it becomes the prompt, where that is known.
        stream: whether the caller wants a stream.
        rids: the names under which the engine can be told to abort it.
        choices: how many choices the answer will have.
        head: the prompt's beginning, for the choice of an engine.
    """

    body: bytes
    decision: Decision | None
    text: PromptText | None = None
    stream: bool
    rids: tuple[str, ...]
    choices: int
    head: bytes = b""


async def read_json_object(request: Request, max_bytes: int, timeout: float) -> dict[str, Any]:
    """Read and parse a request's body.

    Raises:
        BodyTooSlow: it took longer than `timeout` seconds to arrive.
        UnsupportedMediaType: it is not declared as JSON (a browser can send anything else across origins).
        BodyTooLarge: longer than `max_bytes`.
        InvalidRequest: not JSON, not an object, or of too many parts.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(f'content-type is "{media_type}"; allowed: "application/json"', param="content-type")
    try:
        async with asyncio.timeout(timeout):
            raw = await _read(request, max_bytes)
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {timeout:g} seconds") from None
    _check_containers(raw)
    try:
        value = json.loads(raw.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"the body is not UTF-8: {error.reason} at byte {error.start}", code="invalid_json"
        ) from None
    except RecursionError:
        raise InvalidRequest("the body is not acceptable JSON: nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is a JSON {_json_type(value)}; allowed: an object", code="invalid_json")
    return value


async def _read(request: Request, max_bytes: int) -> bytes:
    too_large = BodyTooLarge(f"the body is longer than {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def _check_containers(raw: bytes) -> None:
    """Refuse a body of too many arrays and objects; brackets inside its strings do not count."""
    if _brackets(raw) <= MOST_CONTAINERS:  # nearly always: a look that costs next to nothing
        return
    unescaped = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if _brackets(b"".join(unescaped.split(b'"')[::2])) > MOST_CONTAINERS:
        raise InvalidRequest(f"the body has over {MOST_CONTAINERS} arrays and objects", code="invalid_json")


def _brackets(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        # A literal such as 1e999 is JSON, but no number that anything behind us could hold.
        raise InvalidRequest("a number in the body is out of range", code="invalid_json")
    return value


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case _:
            return "array"


def prepare(body: dict[str, Any], required: str, decision: Decision, text: PromptText) -> Completion:
    """Write the body for the engine.

    Our field becomes `custom_params`, `rid` becomes a name of our own; the rest stays as the caller wrote it.

    Args:
        body: the caller's, parsed and checked by `check_body`; not changed.
        required: the field that carries the input, `messages` or `prompt`.
        decision: the budget that it gets.
        text: what of it becomes the prompt.

    Raises:
        InvalidRequest: names the field, the value and what is allowed.
    """
    rid = uuid.uuid4().hex
    outgoing = {key: value for key, value in body.items() if key not in ("lychee", "custom_params")}
    outgoing["rid"] = rid
    custom_params = merge_custom_params(body.get("custom_params"), decision.sent)
    if custom_params is not None:
        outgoing["custom_params"] = custom_params
    prompts = _prompts(body[required]) if required == "prompt" else 1
    count = body.get("n")
    samples = count if type(count) is int and count > 0 else 1
    return Completion(
        body=dump_body(outgoing),
        decision=decision,
        text=text,
        stream=bool(body.get("stream")),
        # SGLang names the prompts of a batch RID_0, RID_1, ...; the samples of a prompt go by the prompt's name.
        rids=(rid,) if prompts == 1 else tuple(f"{rid}_{index}" for index in range(prompts)),
        choices=prompts * samples,
        head=prompt_head(body[required]),
    )


def check_body(body: dict[str, Any], required: str) -> None:
    """Check what the gateway itself needs of a completion's body.

    Raises:
        InvalidRequest: names the field, the value and what is allowed.
    """
    value = body.get(required)
    if value is None:
        raise InvalidRequest(f"{required} is missing", param=required, code="missing_required_parameter")
    if required == "messages" and not isinstance(value, list):
        raise InvalidRequest(f"messages is a JSON {_json_type(value)}; allowed: an array of messages", param="messages")
    if value in ("", []):
        raise InvalidRequest(f"{required} is empty; at least one is needed", param=required)
    if required == "prompt" and (prompts := _prompts(value)) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt has {prompts} prompts; allowed: up to {MAX_PROMPTS}", param="prompt")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest(f"stream is a JSON {_json_type(stream)}; allowed: true, false", param="stream")


def _prompts(prompt: object) -> int:
    """Return how many prompts a completion has: a list of texts or of token lists is a batch."""
    if isinstance(prompt, list) and isinstance(prompt[0], str | list):
        return len(prompt)
    return 1


def prompt_head(prompt: object) -> bytes:
    """Return the first characters of a prompt (text, tokens, a batch of them, or messages), as bytes."""
    parts: list[str] = []
    room = HEAD_CHARACTERS
    waiting = [prompt]
    while waiting and room > 0:
        value = waiting.pop()
        if isinstance(value, str):
            parts.append(value[:room])
            room -= len(parts[-1])
        elif isinstance(value, int):
            parts.append(f"{value},")
            room -= len(parts[-1])
        elif isinstance(value, list):
            waiting.extend(reversed(value[:HEAD_CHARACTERS]))
        elif isinstance(value, dict):
            waiting.extend((value.get("text"), value.get("content"), value.get("role")))
    return "".join(parts).encode(errors="surrogatepass")


def dump_body(body: dict[str, Any]) -> bytes:
    """Write a body for the engine; raises `InvalidRequest` for what JSON cannot hold."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        pass  # an integer above 64 bits, half a surrogate pair, many levels: what only the standard library writes
    try:
        return json.dumps(body, separators=(",", ":")).encode()
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from None
