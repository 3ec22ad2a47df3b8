"""What SGLang serves through OpenAI's API comes through unharmed: the real client, SGLang's exact shapes."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from tests.gateway.scripted_engine import SUMMARY, Broken, Script, wait_until
from tests.gateway.sglang_shapes import (
    DONE,
    answer,
    answer_choice,
    logprob,
    response,
    response_events,
    text_chunk,
    tool_call,
    tool_chunk,
    usage_chunk,
)

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Event(BaseModel):
    name: str
    when: Literal["today", "tomorrow"]


def chat(gateway, **fields):
    return gateway.openai().chat.completions.create(model="tiny", messages=MESSAGES, **fields)


def test_tool_calls_whole(gateway, engine):
    calls = [tool_call("call_1", 0, "weather", '{"city": "Oslo"}'), tool_call("call_2", 1, "weather", '{"city": "Bø"}')]
    engine.script = Script(answer=answer(answer_choice(tools=calls, finish="tool_calls")))
    message = chat(gateway, tools=[WEATHER], tool_choice="required").choices[0].message
    assert [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls] == [
        ("call_1", "weather", '{"city": "Oslo"}'),
        ("call_2", "weather", '{"city": "Bø"}'),
    ]
    assert engine.bodies[0]["tools"] == [WEATHER]
    assert engine.bodies[0]["tool_choice"] == "required"


def test_tool_calls_streamed_through_the_clients_helper(gateway, engine):
    engine.script = Script(
        events=[
            text_chunk("", role="assistant"),
            tool_chunk("call_1", 0, "weather", ""),
            tool_chunk(None, 0, None, '{"city":'),
            tool_chunk(None, 0, None, ' "Bø"}'),
            text_chunk(finish="tool_calls", lychee=SUMMARY),
            DONE,
        ]
    )
    with gateway.openai().chat.completions.stream(model="tiny", messages=MESSAGES, tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert (call.id, call.function.name) == ("call_1", "weather")
    assert call.function.parsed_arguments == {"city": "Bø"}
    assert kinds.count("tool_calls.function.arguments.delta") == 3
    assert kinds[-1] == "tool_calls.function.arguments.done"
    assert final.choices[0].finish_reason == "tool_calls"


def test_json_schema_parsed_whole_and_streamed(gateway, engine):
    text = '{"name": "Fest", "when": "tomorrow"}'
    engine.script = Script(
        answer=answer(answer_choice(text, stop=2)),
        events=[
            text_chunk("", role="assistant"),
            *map(text_chunk, (text[:9], text[9:])),
            text_chunk(finish="stop"),
            DONE,
        ],
    )
    client = gateway.openai()
    parsed = client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Event)
    assert parsed.choices[0].message.parsed == Event(name="Fest", when="tomorrow")
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, response_format=Event) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Event(name="Fest", when="tomorrow")
    for body in engine.bodies:
        schema = body["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["when"]["enum"] == ["today", "tomorrow"]


def test_logprobs_whole_and_streamed(gateway, engine):
    tokens = [logprob("né", -0.25, ("né", -0.25), ("non", -1.5)), logprob(".", -9999.0)]
    engine.script = Script(
        answer=answer(answer_choice("né.", logprobs={"content": tokens})),
        events=[
            text_chunk("né", logprobs={"content": tokens[:1]}),
            text_chunk(".", logprobs={"content": tokens[1:]}),
            text_chunk(finish="length", lychee=SUMMARY),
            DONE,
        ],
    )
    whole = chat(gateway, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    streamed = [
        token
        for chunk in chat(gateway, logprobs=True, top_logprobs=2, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    for found in (whole, streamed):
        assert [(token.token, token.logprob) for token in found] == [("né", -0.25), (".", -9999.0)]
        assert [(other.token, other.bytes) for other in found[0].top_logprobs] == [
            ("né", [110, 195, 169]),
            ("non", [110, 111, 110]),
        ]
    assert (engine.bodies[0]["logprobs"], engine.bodies[0]["top_logprobs"]) == (True, 2)


def test_several_choices_stop_and_seed(gateway, engine):
    engine.script = Script(
        answer=answer(answer_choice("a", index=0, stop="END"), answer_choice("b", index=1, finish="length")),
        events=[
            text_chunk("a", index=0),
            text_chunk("b", index=1),
            text_chunk(index=1, finish="length"),
            text_chunk(index=0, finish="stop", stop="END", lychee=SUMMARY),
            DONE,
        ],
    )
    asked = {"n": 2, "stop": ["END", "\n"], "seed": 7, "temperature": 0.0}
    whole = chat(gateway, **asked)
    assert [(choice.message.content, choice.matched_stop) for choice in whole.choices] == [("a", "END"), ("b", None)]
    texts = {0: "", 1: ""}
    for chunk in chat(gateway, stream=True, **asked):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "a", 1: "b"}
    for body in engine.bodies:
        assert {name: body[name] for name in asked} == asked


def test_reasoning_whole_and_streamed(gateway, engine):
    engine.script = Script(
        answer=answer(answer_choice("42", reasoning="six by nine")),
        events=[
            text_chunk(reasoning="six "),
            text_chunk(reasoning="by nine"),
            text_chunk("42"),
            text_chunk(finish="stop"),
            DONE,
        ],
    )
    fields = {"reasoning_effort": "high", "extra_body": {"separate_reasoning": True}}
    assert chat(gateway, **fields).choices[0].message.reasoning_content == "six by nine"
    deltas = [chunk.choices[0].delta for chunk in chat(gateway, stream=True, **fields)]
    assert "".join(delta.reasoning_content or "" for delta in deltas) == "six by nine"
    assert "".join(delta.content or "" for delta in deltas) == "42"
    assert engine.bodies[0]["separate_reasoning"] is True
    assert engine.bodies[0]["reasoning_effort"] == "high"


def test_usage_in_a_stream(gateway, engine):
    engine.script = Script(events=[text_chunk("a"), text_chunk(finish="stop"), usage_chunk(lychee=SUMMARY), DONE])
    chunks = list(chat(gateway, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 1004
    assert chunks[-1].lychee["context_tokens"] == 1004
    assert gateway.total("lychee_prompt_tokens_total") == 1000


def test_numbers_of_an_answer_keep_their_digits(gateway, engine):
    """The chunk with the summary is written anew: what stands beside it must not change."""
    odd = {"big": 2**80, "small": 1e-300, "float": 1.0, "int": 1}
    engine.script = Script(
        answer=answer(answer_choice("a"), lychee=SUMMARY, odd=odd),
        events=[text_chunk(finish="stop", lychee=SUMMARY, odd=odd), DONE],
    )
    assert gateway.chat().text.count(str(2**80)) == 1
    streamed = json.loads(gateway.chat(stream=True).text.split("\n\n")[0].removeprefix("data: "))
    assert streamed["odd"] == odd
    assert [type(value) for value in streamed["odd"].values()] == [int, float, float, int]


def test_every_field_that_sglang_knows_arrives(gateway, engine):
    fields = {
        "max_tokens": 5, "max_completion_tokens": 6, "min_tokens": 1, "top_p": 0.9, "top_k": 40, "min_p": 0.01,
        "frequency_penalty": 0.1, "presence_penalty": 0.2, "repetition_penalty": 1.1, "logit_bias": {"5": -100},
        "stop_token_ids": [1, 2], "ignore_eos": True, "skip_special_tokens": False, "no_stop_trim": True,
        "regex": "a+", "ebnf": None, "lora_path": None, "session_params": {"id": "s"}, "parallel_tool_calls": False,
        "continue_final_message": False, "stream_reasoning": True, "chat_template_kwargs": {"enable_thinking": True},
        "return_hidden_states": False, "user": "me", "priority": 3, "cache_salt": "x", "custom_params": {"a": 1.5},
    }  # fmt: skip
    assert gateway.http.post(CHAT, json={"messages": MESSAGES, **fields}).status_code == 200
    body = engine.bodies[0]
    assert {name: body[name] for name in fields} == fields


def test_responses_whole_and_streamed(gateway, engine):
    usage = {"prompt_tokens": 11, "total_tokens": 14, "completion_tokens": 3, "reasoning_tokens": 0}
    engine.script = Script(answer=response("completed", "né so", usage), events=response_events("né", " so"))
    client = gateway.openai()
    whole = client.responses.with_raw_response.create(model="tiny", input="hi", max_output_tokens=9)
    assert whole.parse().output_text == "né so"
    assert not [name for name in whole.headers if name.startswith("x-lychee-")]
    events = list(client.responses.create(model="tiny", input="hi", stream=True))
    assert [event.type for event in events][-1] == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "né so"
    assert [event.sequence_number for event in events] == list(range(5))
    raw = gateway.http.post("/v1/responses", json={"input": "hi", "stream": True})
    assert raw.content == b"".join(response_events("né", " so"))
    assert engine.bodies[0]["request_id"].startswith("resp_")
    assert engine.bodies[0]["max_output_tokens"] == 9
    assert gateway.total("lychee_prompt_tokens_total") == 3 * 11
    assert gateway.value("lychee_generation_tokens_total") == 3 * 3
    assert gateway.value("lychee_answers_without_summary_total") == 0
    assert gateway.value("lychee_requests_total", route="/v1/responses", status="200") == 3
    assert engine.aborts == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"lychee": {"budget": 512}}, "lychee"),
        ({"custom_params": {"lychee_budget": 512}}, "custom_params"),
        ({"background": True}, "background"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_the_responses_api_cannot_do_is_refused(gateway, engine, fields, param):
    reply = gateway.http.post("/v1/responses", json={"input": "hi", **fields})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert engine.bodies == []


def test_earlier_responses_need_one_engine(start_gateway, running, engine):
    body = {"input": "hi", "previous_response_id": "resp_0"}
    engine.script = Script(answer=response("completed", "a"))
    assert start_gateway().http.post("/v1/responses", json=body).status_code == 200
    assert engine.bodies[0]["previous_response_id"] == "resp_0"
    two = start_gateway(engine_urls=f"{running.server.url},http://127.0.0.1:9")
    assert two.http.post("/v1/responses", json=body).json()["error"]["param"] == "previous_response_id"


@pytest.mark.parametrize("events", [response_events("né", " so")[:3], [*response_events("né", " so")[:3], Broken()]])
def test_a_responses_stream_that_breaks_ends_with_its_own_error_event(gateway, engine, events):
    engine.script = Script(events=events)
    seen = list(gateway.openai().responses.create(model="tiny", input="hi", stream=True))
    assert [event.type for event in seen][-2:] == ["response.output_text.delta", "error"]
    assert "before the answer was complete" in seen[-1].message
    raw = gateway.http.post("/v1/responses", json={"input": "hi", "stream": True}).text
    kind, data = raw.split("\n\n")[-2].split("\n")
    assert kind == "event: error"
    assert json.loads(data.removeprefix("data: "))["code"] == "engine_unavailable"
    wait_until(lambda: len(engine.aborts) == 2)
    assert [rid for rid, _ in engine.aborts] == [body["request_id"] for body in engine.bodies]


def test_what_a_responses_stream_begins_with_is_no_first_token(gateway, engine):
    """SGLang sends these two when it accepts a request: the time to them is no time to a token."""
    for sent, tokens in ((2, 0), (3, 1)):
        engine.script = Script(events=response_events("né")[:sent])
        raw = gateway.http.post("/v1/responses", json={"input": "hi", "stream": True}).text
        assert gateway.total("lychee_time_to_first_token_seconds_count") == tokens
        assert json.loads(raw.split("data: ")[-1])["sequence_number"] == sent


def test_embeddings_pass_and_a_model_without_them_refuses_in_its_own_words(gateway, engine):
    item = {"embedding": [0.25, -1.0], "index": 0, "object": "embedding"}
    usage = {"prompt_tokens": 2, "total_tokens": 2, "completion_tokens": 0}
    engine.script = Script(answer={"data": [item], "model": "tiny", "object": "list", "usage": usage})
    client = gateway.openai()
    found = client.embeddings.create(model="tiny", input=["a"], encoding_format="float")
    assert found.data[0].embedding == [0.25, -1.0]
    assert engine.bodies[0]["input"] == ["a"]
    assert "rid" not in engine.bodies[0]
    assert gateway.total("lychee_prompt_tokens_total") == 2
    words = "This model does not appear to be an embedding model by default."
    engine.script = Script(status=400, answer={"object": "error", "message": words, "type": "BadRequest", "code": 400})
    with pytest.raises(openai.BadRequestError, match=words):
        client.embeddings.create(model="tiny", input="a")
    for fields in ({"lychee": {"budget": 1}}, {"stream": True}, {"input": ""}):
        assert gateway.http.post("/v1/embeddings", json={"input": "a", **fields}).status_code == 400
