"""What the page at /docs says about bodies that the routes read themselves."""

from __future__ import annotations

from typing import Any

from lychee_server.schemas import LycheeAnswer, LycheeRequest

_MESSAGES = [{"role": "user", "content": "Where did I put the key?"}]
_MODEL = "default"


def _body(schema: dict[str, Any], examples: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    named = {name: {"summary": summary, "value": value} for name, (summary, value) in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "examples": named}}}}


def _schema(required: str, field: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [required],
        "properties": {
            "model": {"type": "string", "description": "as listed by /v1/models"},
            required: field,
            "stream": {"type": "boolean", "default": False},
            "lychee": LycheeRequest.model_json_schema(),
        },
        "additionalProperties": True,
        "description": "All other fields of OpenAI and SGLang are passed on, `rid` excepted.",
    }


CHAT_BODY = _body(
    _schema("messages", {"type": "array", "minItems": 1, "items": {"type": "object"}}),
    {
        "default": ("The head plan's default budget", {"model": _MODEL, "messages": _MESSAGES}),
        "budget": (
            "512 tokens for each sparse head",
            {"model": _MODEL, "messages": _MESSAGES, "lychee": {"budget": 512}},
        ),
        "auto": (
            "A share of the prompt, streamed",
            {"model": _MODEL, "messages": _MESSAGES, "stream": True, "lychee": {"budget": "auto"}},
        ),
        "top_p": (
            "As many tokens as hold 95% of the attention, 4096 at most",
            {
                "model": _MODEL,
                "messages": _MESSAGES,
                "lychee": {"mode": "top_p", "value": 0.95, "budget": 4096},
            },
        ),
        "recall": (
            "As few tokens as hold a recall of 97%",
            {"model": _MODEL, "messages": _MESSAGES, "lychee": {"min_recall": 0.97}},
        ),
        "dense": ("No sparsity", {"model": _MODEL, "messages": _MESSAGES, "lychee": {"budget": "dense"}}),
    },
)

TEXT_BODY = _body(
    _schema("prompt", {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {}}]}),
    {
        "budget": (
            "512 tokens for each sparse head",
            {"model": _MODEL, "prompt": "The key is", "max_tokens": 32, "lychee": {"budget": 512}},
        ),
        "ratio": (
            "A tenth of the context",
            {
                "model": _MODEL,
                "prompt": "The key is",
                "max_tokens": 32,
                "lychee": {"mode": "ratio", "value": 0.1},
            },
        ),
    },
)

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": "string", "nullable": True},
                "code": {"type": "string", "nullable": True},
            },
        }
    },
}

EXPLAIN_BODY = _body(
    {
        "type": "object",
        "required": ["request"],
        "properties": {
            "request": {"type": "object", "description": "the body of a chat or a completion"},
            "route": {"type": "string", "enum": ["chat", "completions"]},
            "tier": {"type": "string", "nullable": True, "description": "instead of the caller's own"},
            "prompt_tokens": {"type": "integer", "minimum": 1, "description": "instead of an estimate from the text"},
        },
        "additionalProperties": False,
    },
    {
        "recall": (
            "Which budget would hold a recall",
            {"request": {"messages": _MESSAGES, "lychee": {"min_recall": 0.97}}, "prompt_tokens": 30_000},
        ),
    },
)

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": {"application/json": {"schema": _ERROR}}}
    for status, description in (
        (502, "The engine failed"),
        (503, "The engine is not ready; `Retry-After` says when to try again"),
        (504, "The engine was silent for too long"),
    )
}

REFUSED_RESPONSES: dict[int | str, dict[str, Any]] = {
    **{
        status: {"description": description, "content": {"application/json": {"schema": _ERROR}}}
        for status, description in (
            (400, "A field is wrong; `param` names it"),
            (413, "The body is too long"),
            (415, "The body is not declared as application/json"),
        )
    },
    **ERROR_RESPONSES,
}

COMPLETION_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's answer, as the engine gives it, with the object `lychee`: in a stream it is part "
        "of the last chunk before `[DONE]`",
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"lychee": LycheeAnswer.model_json_schema()}}
            },
            "text/event-stream": {},
        },
    },
    **{
        status: {"description": description, "content": {"application/json": {"schema": _ERROR}}}
        for status, description in (
            (400, "A field is wrong; `param` names it"),
            (413, "The body is too long"),
            (415, "The body is not declared as application/json"),
            (429, "Too many requests are in flight; `Retry-After` says when to try again"),
        )
    },
    **ERROR_RESPONSES,
}
