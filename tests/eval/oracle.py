"""An OpenAI-compatible server that answers needle questions by reading them, in the shapes of SGLang, on a socket."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

NEEDLE = re.compile(r"for (\S+) is: (\S+)\.")
QUERY = re.compile(r"magic \w+ for (.+) mentioned in the provided text\?")


def read(text: str) -> str:
    """All values of the keys that are asked for."""
    asked = QUERY.findall(text)[-1]
    return ", ".join(value for key, value in NEEDLE.findall(text) if key in asked)


class Oracle:
    """The server; what it does with a request can be changed.

    Attributes:
        bodies: all requests for an answer.
        trouble: called with the number of a request (from 0); a status, headers and message to answer with, or None.
        answer: makes the reply of a prompt's text under the request's fields.
        reason: why an answer ends.
        raw: whether answers are JSON in UTF-8, without escapes.
        asked: set with every request.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.trouble: Callable[[int], tuple[int, dict[str, str], str] | None] = lambda number: None
        self.answer: Callable[[str, dict[str, Any]], str] = lambda text, body: read(text)
        self.reason: Callable[[dict[str, Any]], str] = lambda body: "stop"
        self.raw = False
        self.plan: dict[str, str] | None = {"name": "tiny", "sha256": "ab"}
        self.counts: Counter[str] = Counter()
        self.asked = threading.Event()
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/lychee/info", self._info),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ]
        )

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def _info(self, _: Request) -> Response:
        return JSONResponse({"plan": self.plan, "dense_below": 64, "version": "0.1.0"})

    async def _tokenize(self, request: Request) -> Response:
        self.counts["tokenize"] += 1
        return JSONResponse({"count": tokens(await request.json()), "tokens": []})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.asked.set()
        found = self.trouble(number)
        if found is not None:
            status, headers, message = found
            return JSONResponse({"error": {"message": message}}, status_code=status, headers=headers)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        text = told(body)
        reply = self.answer(text, body) if body["max_tokens"] > 1 else "."
        field = body.get("lychee") or {}
        share = field.get("value", 1.0)
        count = max(1, len(reply) // 4)
        usage = {"prompt_tokens": tokens(body), "completion_tokens": count, "total_tokens": tokens(body) + count}
        lychee = {
            "budget": field.get("budget"),
            "context_tokens": usage["total_tokens"],
            "attended_fraction": share,
            "recall": None if share == 1.0 else 1 - (1 - share) ** 2,
        }
        chat = "messages" in body
        for piece in ("", *re.findall(r".{1,7}", reply, re.DOTALL)):
            choice: dict[str, Any] = {"index": 0, "finish_reason": None}
            choice |= {"delta": {"content": piece}} if chat else {"text": piece}
            yield f"data: {json.dumps({'choices': [choice]}, ensure_ascii=not self.raw)}\n\n"
        end: dict[str, Any] = {
            "index": 0,
            "finish_reason": self.reason(body),
            **({"delta": {}} if chat else {"text": ""}),
        }
        yield f"data: {json.dumps({'choices': [end], 'usage': usage, 'lychee': lychee})}\n\n"
        yield "data: [DONE]\n\n"


def told(body: dict[str, Any]) -> str:
    """All text of a request."""
    if "messages" in body:
        return "\n".join(message["content"] for message in body["messages"])
    return str(body["prompt"])


def tokens(body: dict[str, Any]) -> int:
    """Four letters a token, and a template of ten."""
    return len(told(body)) // 4 + 10
