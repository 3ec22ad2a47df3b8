"""The answers that the gateway's tests script are SGLang's own: each is built by its classes and compared."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sglang")

from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
    ChatCompletionTokenLogprob,
    ChatMessage,
    ChoiceLogprobs,
    DeltaMessage,
    FunctionResponse,
    ResponsesRequest,
    ToolCall,
    TopLogprob,
    UsageInfo,
)
from sglang.srt.entrypoints.openai.sse_utils import build_sse_content

from lychee_sgl import compat
from tests.gateway import sglang_shapes as shapes

pytestmark = pytest.mark.skipif(compat.sglang_version() != (0, 5, 17), reason="the shapes are those of SGLang 0.5.17")
HEAD = {"created": shapes.HEAD["created"], "model": shapes.HEAD["model"]}
ID = shapes.HEAD["id"]
USAGE = UsageInfo(prompt_tokens=1000, completion_tokens=4, total_tokens=1004)


def logprobs() -> ChoiceLogprobs:
    top = TopLogprob(token="né", bytes=[110, 195, 169], logprob=-0.25)
    one = ChatCompletionTokenLogprob(token="né", bytes=[110, 195, 169], logprob=-0.25, top_logprobs=[top])
    return ChoiceLogprobs(content=[one])


def dumped(chunk: ChatCompletionStreamResponse) -> bytes:
    return f"data: {chunk.model_dump_json()}\n\n".encode()


@pytest.mark.parametrize(
    ("ours", "sglangs"),
    [
        (shapes.text_chunk("", role="assistant"), {"index": 0, "role": "assistant", "content": ""}),
        (shapes.text_chunk("né\n", index=1), {"index": 1, "content": "né\n"}),
        (shapes.text_chunk(reasoning="hm"), {"index": 0, "reasoning_content": "hm"}),
        (shapes.text_chunk(finish="stop", stop=2), {"index": 0, "finish_reason": "stop", "matched_stop": 2}),
        (
            shapes.text_chunk("né", logprobs={"content": [shapes.logprob("né", -0.25, ("né", -0.25))]}),
            {"index": 0, "content": "né", "logprobs": logprobs().model_dump()},
        ),
    ],
    ids=["role", "text", "reasoning", "finish", "logprobs"],
)
def test_text_chunks(ours, sglangs):
    assert build_sse_content(chunk_id=ID, **HEAD, **sglangs).encode() == ours


@pytest.mark.parametrize("named", [True, False])
def test_tool_chunks(named):
    name, call_id = ("f", "call_1") if named else (None, None)
    call = ToolCall(id=call_id, index=0, function=FunctionResponse(name=name, arguments='{"a"'))
    choice = ChatCompletionResponseStreamChoice(index=0, delta=DeltaMessage(tool_calls=[call]))
    theirs = dumped(ChatCompletionStreamResponse(id=ID, choices=[choice], **HEAD))
    assert theirs == shapes.tool_chunk(call_id, 0, name, '{"a"')


def test_usage_chunk():
    assert dumped(ChatCompletionStreamResponse(id=ID, choices=[], usage=USAGE, **HEAD)) == shapes.usage_chunk()


def test_whole_answers():
    call = ToolCall(id="call_1", index=0, function=FunctionResponse(name="f", arguments="{}"))
    choices = [
        ChatCompletionResponseChoice(
            index=0,
            message=ChatMessage(role="assistant", content="né", reasoning_content="hm", tool_calls=[call]),
            logprobs=logprobs(),
            finish_reason="tool_calls",
            matched_stop="END",
        ),
        ChatCompletionResponseChoice(index=1, message=ChatMessage(role="assistant"), finish_reason="length"),
    ]
    answer = ChatCompletionResponse(
        id=ID, choices=choices, usage=USAGE, metadata={"weight_version": "default"}, **HEAD
    ).model_dump_json()
    first = shapes.answer_choice(
        "né",
        reasoning="hm",
        tools=[shapes.tool_call("call_1", 0, "f", "{}")],
        logprobs={"content": [shapes.logprob("né", -0.25, ("né", -0.25))]},
        finish="tool_calls",
        stop="END",
    )
    ours = shapes.answer(first, shapes.answer_choice(index=1, finish="length"))
    assert json.dumps(ours, ensure_ascii=False, separators=(",", ":")) == answer


def test_the_responses_api_carries_no_custom_params():
    """The day it does, the gateway can honour its field there too."""
    assert "custom_params" not in ResponsesRequest.model_fields
    assert "request_id" in ResponsesRequest.model_fields
