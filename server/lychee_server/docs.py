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
        "memory": (
            "A document beyond the window, read block by block",
            {
                "model": _MODEL,
                "messages": [{"role": "user", "content": "(a document)\n\nWhere did I put the key?"}],
                "stream": True,
                "lychee": {"memory": "text"},
            },
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

_INPUT = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1, "items": {}}]}


def _passed_schema(description: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["input"],
        "properties": {"model": {"type": "string"}, "input": _INPUT},
        "additionalProperties": True,
        "description": description,
    }


RESPONSES_BODY = _body(
    _passed_schema("OpenAI's Responses API as SGLang has it; `lychee`, `custom_params` and `background` are refused."),
    {"text": ("One question", {"model": _MODEL, "input": "Where did I put the key?", "max_output_tokens": 64})},
)

EMBEDDINGS_BODY = _body(
    _passed_schema("OpenAI's embeddings as SGLang has them; `lychee` is refused."),
    {"texts": ("Two texts", {"model": _MODEL, "input": ["a key", "a lock"]})},
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
            {"request": {"messages": _MESSAGES, "lychee": {"min_recall": 0.97}}, "prompt_tokens": 6000},
        ),
    },
)


def _errors(*described: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"description": description, "content": {"application/json": {"schema": _ERROR}}}
        for status, description in described
    }


KEY_RESPONSES = _errors(
    (401, "A key is needed, and none or no valid one was sent"), (403, "The policy does not know the key's tier")
)

PROBE_RESPONSES = _errors((503, "The engine is not ready, or a shutdown has begun"))

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    **KEY_RESPONSES,
    **_errors(
        (502, "The engine failed"),
        (503, "The engine is not ready; `Retry-After` says when to try again"),
        (504, "The engine was silent for too long"),
    ),
}

MODEL_RESPONSES: dict[int | str, dict[str, Any]] = {**ERROR_RESPONSES, **_errors((404, "There is no such model"))}

REFUSED_RESPONSES: dict[int | str, dict[str, Any]] = {
    **_errors(
        (400, "A field is wrong; `param` names it"),
        (408, "The body took too long"),
        (413, "The body is too long"),
        (415, "The body is not declared as application/json"),
    ),
    **ERROR_RESPONSES,
}

PASSED_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's answer, as the engine gives it",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    },
    **REFUSED_RESPONSES,
    **_errors((429, "A limit is reached or the line is full; `Retry-After` says when to try again")),
}

COMPLETION_RESPONSES: dict[int | str, dict[str, Any]] = {
    **PASSED_RESPONSES,
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
}
