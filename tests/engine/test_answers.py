"""Answers that are not streamed get the summary, and stay what SGLang takes them for."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from fastapi.encoders import jsonable_encoder
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatMessage,
    CompletionResponse,
    CompletionResponseChoice,
    UsageInfo,
)

from lychee_sgl.backend import openai
from tests.engine.test_openai_stream import Manager

USAGE = UsageInfo(prompt_tokens=10, completion_tokens=3, total_tokens=13)
CHAT = ChatCompletionResponse(
    id="x",
    model="m",
    choices=[
        ChatCompletionResponseChoice(
            index=0, message=ChatMessage(role="assistant", content="né"), finish_reason="stop", logprobs=None
        )
    ],
    usage=USAGE,
)
COMPLETION = CompletionResponse(
    id="x", model="m", choices=[CompletionResponseChoice(index=0, text="né", finish_reason="stop")], usage=USAGE
)


def asked() -> SimpleNamespace:
    """A request whose outputs have been seen."""
    seen = {0: {"prompt_tokens": 10, "completion_tokens": 3}}
    return SimpleNamespace(sampling_params={"custom_params": {"lychee_budget": 5}}, **{openai.SEEN: seen})


async def decorated(answer: Any) -> Any:
    async def original(serving: Any, adapted: Any) -> Any:
        return answer

    return await openai.decorate_answer(original, SimpleNamespace(tokenizer_manager=Manager([])), asked())


@pytest.mark.parametrize("plain", [CHAT, COMPLETION], ids=["chat", "completion"])
async def test_an_answer_has_the_summary_beside_what_it_had(plain: Any) -> None:
    answer = await decorated(plain)
    assert isinstance(answer, type(plain))
    told = jsonable_encoder(answer)
    assert told.pop("lychee")["budget"] == 5
    assert told == jsonable_encoder(plain)


async def test_a_refusal_stays_as_it_is() -> None:
    refusal = SimpleNamespace(status_code=400, body=b"{}")
    assert await decorated(refusal) is refusal


class Chat:
    """SGLang's chat handler as its other protocols use it, over an engine that is not there."""

    def _validate_request(self, request: Any) -> None:
        return None

    def _convert_to_internal_request(self, request: Any, raw: Any) -> tuple[Any, Any]:
        return asked(), request

    async def _handle_non_streaming_request(self, adapted: Any, request: Any, raw: Any) -> Any:
        return await decorated(CHAT)


async def test_messages_of_anthropics_protocol_are_answered() -> None:
    serving = pytest.importorskip("sglang.srt.entrypoints.anthropic.serving")
    protocol = pytest.importorskip("sglang.srt.entrypoints.anthropic.protocol")
    request = protocol.AnthropicMessagesRequest(
        model="m", max_tokens=8, messages=[{"role": "user", "content": "What is born, in French?"}]
    )
    answer = await serving.AnthropicServing(Chat()).handle_messages(request, None)
    body = json.loads(answer.body)
    assert (answer.status_code, body["type"]) == (200, "message")
    assert body["content"] == [{"type": "text", "text": "né"}]
