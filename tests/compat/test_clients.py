"""LangChain's and LiteLLM's OpenAI adapters. `make test-compat` installs them, in an environment of their own."""

from __future__ import annotations

import os

import pytest
from pydantic import BaseModel

from tests.gateway.scripted_engine import SUMMARY, Script
from tests.gateway.sglang_shapes import DONE, answer, answer_choice, text_chunk, tool_call, tool_chunk, usage_chunk

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or importing it asks the network
os.environ["LANGSMITH_TRACING"] = "false"
langchain_openai = pytest.importorskip("langchain_openai")
litellm = pytest.importorskip("litellm")

# Both warn of their own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning")

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
TEXT = [
    text_chunk("", role="assistant"),
    text_chunk("Hé "),
    text_chunk("你好"),
    text_chunk(finish="stop", lychee=SUMMARY),
]


class Event(BaseModel):
    name: str


@pytest.fixture
def chain(gateway):
    return langchain_openai.ChatOpenAI(
        base_url=f"{gateway.server.url}/v1",
        api_key="unused",
        model="tiny",
        max_retries=0,
        extra_body={"lychee": {"budget": 512}},
    )


@pytest.fixture
def lite(gateway):
    def complete(**fields):
        return litellm.completion(
            model="openai/tiny",
            api_base=f"{gateway.server.url}/v1",
            api_key="unused",
            messages=[{"role": "user", "content": "hi"}],
            extra_body={"lychee": {"budget": 512}},
            max_retries=0,
            **fields,
        )

    return complete


def test_langchain_whole_and_streamed(chain, engine):
    engine.script = Script(answer=answer(answer_choice("Hé 你好"), lychee=SUMMARY), events=[*TEXT, usage_chunk(), DONE])
    whole = chain.invoke("hi")
    assert whole.content == "Hé 你好"
    assert whole.usage_metadata["total_tokens"] == 1004
    assert "".join(chunk.content for chunk in chain.stream("hi")) == "Hé 你好"
    assert [body["custom_params"] for body in engine.bodies] == [{"lychee_budget": 512}] * 2


async def test_langchain_async(chain, engine):
    engine.script = Script(events=[*TEXT, usage_chunk(), DONE])
    assert "".join([chunk.content async for chunk in chain.astream("hi")]) == "Hé 你好"


def test_langchain_tools_and_structured_output(chain, engine):
    engine.script = Script(answer=answer(answer_choice(tools=[tool_call("c1", 0, "weather", '{"a": 1}')])))
    (call,) = chain.bind_tools([WEATHER]).invoke("hi").tool_calls
    assert (call["id"], call["name"], call["args"]) == ("c1", "weather", {"a": 1})
    pieces = [tool_chunk("c1", 0, "weather", ""), tool_chunk(None, 0, None, '{"a": 1}')]
    engine.script = Script(events=[*pieces, text_chunk(finish="tool_calls"), DONE])
    whole = None
    for chunk in chain.bind_tools([WEATHER]).stream("hi"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["args"] == {"a": 1}
    engine.script = Script(answer=answer(answer_choice('{"name": "Fest"}')))
    assert chain.with_structured_output(Event, method="json_schema").invoke("hi") == Event(name="Fest")
    assert engine.bodies[-1]["response_format"]["type"] == "json_schema"


def test_litellm_whole_streamed_and_tools(lite, engine):
    engine.script = Script(answer=answer(answer_choice("Hé 你好"), lychee=SUMMARY), events=[*TEXT, usage_chunk(), DONE])
    assert lite().choices[0].message.content == "Hé 你好"
    chunks = list(lite(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hé 你好"
    engine.script = Script(
        answer=answer(answer_choice(tools=[tool_call("c1", 0, "weather", "{}")], finish="tool_calls"))
    )
    (call,) = lite(tools=[WEATHER]).choices[0].message.tool_calls
    assert (call.id, call.function.name) == ("c1", "weather")
    assert engine.bodies[0]["custom_params"] == {"lychee_budget": 512}


def test_errors_become_the_adapters_own(chain, lite, engine, gateway):
    engine.script = Script(status=400, answer={"message": "no such thing", "code": 400})
    with pytest.raises(litellm.BadRequestError, match="no such thing"):
        lite()
    with pytest.raises(Exception, match="no such thing") as refused:
        chain.invoke("hi")
    assert type(refused.value).__name__ in ("BadRequestError", "OpenAIInvalidRequestError")
