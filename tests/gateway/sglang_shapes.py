"""Answers in the shapes of SGLang 0.5.17, key for key and in its order; held to SGLang itself by tests/engine."""

from __future__ import annotations

import json
from typing import Any

HEAD = {"id": "0123456789abcdef", "object": "chat.completion.chunk", "created": 1700000000, "model": "tiny"}
USAGE = {
    "prompt_tokens": 1000,
    "total_tokens": 1004,
    "completion_tokens": 4,
    "prompt_tokens_details": None,
    "reasoning_tokens": 0,
}
DONE = b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _choice(index: int, delta: dict[str, Any], logprobs: object, finish: str | None, stop: object) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish, "matched_stop": stop}


def text_chunk(
    content: str | None = None,
    *,
    index: int = 0,
    role: str | None = None,
    reasoning: str | None = None,
    logprobs: dict[str, Any] | None = None,
    finish: str | None = None,
    stop: int | str | None = None,
    **more: Any,
) -> bytes:
    """Text, reasoning and the end of a choice: SGLang writes them with msgspec and leaves defaults out."""
    delta = {"reasoning_content": reasoning, "role": role, "content": content}
    delta = {key: value for key, value in delta.items() if key == "reasoning_content" or value is not None}
    return event({**HEAD, "choices": [_choice(index, delta, logprobs, finish, stop)], **more})


def tool_chunk(call: str | None, number: int, name: str | None, arguments: str, *, index: int = 0) -> bytes:
    """A piece of a tool call: SGLang writes it with pydantic, nulls and all."""
    function = {"name": name, "arguments": arguments}
    tool = {"id": call, "index": number, "type": "function", "function": function}
    delta = {"role": None, "content": None, "reasoning_content": None, "tool_calls": [tool]}
    return event({**HEAD, "choices": [_choice(index, delta, None, None, None)], "usage": None})


def usage_chunk(**more: Any) -> bytes:
    return event({**HEAD, "choices": [], "usage": USAGE, **more})


def logprob(token: str, value: float, *others: tuple[str, float]) -> dict[str, Any]:
    def one(text: str, number: float) -> dict[str, Any]:
        return {"token": text, "bytes": list(text.encode()), "logprob": number}

    return {**one(token, value), "top_logprobs": [one(*other) for other in others]}


def answer(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A chat's answer that is not streamed."""
    head = {**HEAD, "object": "chat.completion"}
    return {**head, "choices": list(choices), "usage": USAGE, "metadata": {"weight_version": "default"}, **more}


def answer_choice(
    content: str | None = None,
    *,
    index: int = 0,
    reasoning: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    logprobs: dict[str, Any] | None = None,
    finish: str = "stop",
    stop: int | str | None = None,
) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": tools}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish, "matched_stop": stop}


def tool_call(call: str, number: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call, "index": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def response(status: str, text: str = "", usage: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object of the Responses API."""
    part = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
    message = {"id": "msg_1", "content": [part], "role": "assistant", "status": "completed", "type": "message"}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1700000000,
        "model": "tiny",
        "output": [message] if text else [],
        "status": status,
        "usage": usage,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "store": True,
    }


def response_event(kind: str, number: int, **fields: Any) -> bytes:
    value = {**fields, "sequence_number": number, "type": kind}
    return f"event: {kind}\n".encode() + event(value)


def response_events(*pieces: str) -> list[bytes]:
    """A whole stream of the Responses API; there is no `[DONE]`."""
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    usage = {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 14,
    }
    deltas = [
        response_event("response.output_text.delta", 2 + number, delta=piece, logprobs=[], **place)
        for number, piece in enumerate(pieces)
    ]
    last = response("completed", "".join(pieces), usage)
    return [
        response_event("response.created", 0, response=response("in_progress")),
        response_event("response.in_progress", 1, response=response("in_progress")),
        *deltas,
        response_event("response.completed", 2 + len(pieces), response=last),
    ]
