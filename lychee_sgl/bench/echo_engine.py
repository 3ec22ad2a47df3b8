"""An engine without a model, in SGLang's words, for measurements of what stands before it.

`python -m lychee_sgl.bench.echo_engine --port 8001`. Every answer repeats the end of its prompt in each chunk, so a
client can tell whether it got its own. `max_tokens` is the number of chunks, `chunk_pause` the seconds before each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MARKER_CHARACTERS = 32
CONTEXT_WINDOW = 131_072
_INFO = {
    "version": "0",
    "plan": {"name": "echo", "method": "none", "heuristic": False, "retrieval_heads": 1, "heads": 2, "sha256": "0"},
    "defaults": {"budget": 1024, "mode": "topk", "value": None, "sinks": 64, "recent": 256},
    "dense_below": 1024,
    "recall_every": 32,
    "context_window": CONTEXT_WINDOW,
    "model": "echo",
    "device": "none",
}


class EchoEngine:
    """The ASGI application."""

    def __init__(self) -> None:
        self.counts = {"requests": 0, "complete": 0, "aborts": 0, "active": 0}
        self._aborted: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = await _body(receive)
        match scope["path"]:
            case "/v1/chat/completions":
                await self._complete(json.loads(body), receive, send)
            case "/abort_request":
                self.counts["aborts"] += 1
                self._aborted.add(json.loads(body)["rid"])
                await _reply(send, {})
            case "/lychee/info":
                await _reply(send, _INFO)
            case "/counts":
                await _reply(send, self.counts)
            case "/v1/models":
                await _reply(send, {"object": "list", "data": [{"id": "echo", "max_model_len": CONTEXT_WINDOW}]})
            case _:
                await _reply(send, {})

    async def _complete(self, body: dict[str, Any], receive: Receive, send: Send) -> None:
        counts = self.counts
        counts["requests"] += 1
        counts["active"] += 1
        try:
            if body.get("stream"):
                whole = await self._stream(body, send)
            else:
                await asyncio.sleep(body.get("chunk_pause", 0.0) * body["max_tokens"])
                whole = body["rid"] not in self._aborted
                await _reply(send, _answer(body))
            counts["complete"] += whole
        finally:
            counts["active"] -= 1
            self._aborted.discard(body["rid"])

    async def _stream(self, body: dict[str, Any], send: Send) -> bool:
        pause, rid, marker = body.get("chunk_pause", 0.0), body.get("rid", ""), marker_of(body)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _piece(send, _event(rid, {"role": "assistant", "content": "", "reasoning_content": None}))
        for number in range(body["max_tokens"]):
            if pause:
                await asyncio.sleep(pause)
            if rid in self._aborted:
                break
            await _piece(send, _event(rid, {"content": chunk_text(marker, number), "reasoning_content": None}))
        last = _event(rid, {"reasoning_content": None}, "stop", lychee=_summary(body))
        await _piece(send, last + b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b""})
        return rid not in self._aborted


def marker_of(body: dict[str, Any]) -> str:
    """Return what the answer to a request repeats: the end of its last message."""
    return str(body["messages"][-1]["content"])[-MARKER_CHARACTERS:]


def chunk_text(marker: str, number: int) -> str:
    """Return the text of one chunk of an answer."""
    return f"{marker}#{number} "


def answer_text(body: dict[str, Any]) -> str:
    """Return the text of a whole answer."""
    return "".join(chunk_text(marker_of(body), number) for number in range(body["max_tokens"]))


def _event(rid: str, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "matched_stop": None}
    chunk = {"id": rid, "object": "chat.completion.chunk", "created": 1, "model": "echo", "choices": [choice], **more}
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _prompt_tokens(body: dict[str, Any]) -> int:
    return max(1, sum(len(str(message["content"])) for message in body["messages"]) // 4)


def _summary(body: dict[str, Any]) -> dict[str, Any]:
    context, steps = _prompt_tokens(body) + body["max_tokens"], max(0, body["max_tokens"] - 1)
    budget = (body.get("custom_params") or {}).get("lychee_budget", 1024)
    return {
        "budget": budget if isinstance(budget, int) else "dense",
        "mode": "topk" if isinstance(budget, int) else None,
        "value": None,
        "context_tokens": context,
        "attended_tokens": context * steps,
        "dense_tokens": 2 * context * steps,
        "decode_steps": steps,
        "sparse_steps": steps if isinstance(budget, int) else 0,
        "attended_fraction": 0.5 if steps else None,
        "recall": 0.97 if steps else None,
        "recall_steps": int(steps > 0),
        "dense_fallback": None,
        "queue_seconds": 0.0,
    }


def _answer(body: dict[str, Any]) -> dict[str, Any]:
    prompt, generated = _prompt_tokens(body), body["max_tokens"]
    message = {"role": "assistant", "content": answer_text(body), "reasoning_content": None, "tool_calls": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "matched_stop": None}
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated}
    answer = {"id": body.get("rid", ""), "object": "chat.completion", "created": 1, "model": "echo"}
    return {**answer, "choices": [choice], "usage": usage, "lychee": _summary(body)}


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _piece(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _reply(send: Send, value: object) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    uvicorn.run(EchoEngine(), host="127.0.0.1", port=port, log_level="critical", access_log=False, backlog=2048)


if __name__ == "__main__":
    main()
