"""Answers: what reaches the engine, and what comes back from it, through the real OpenAI client."""

from __future__ import annotations

import json
import re
import threading

import pytest

from tests.gateway.scripted_engine import (
    DONE,
    INFO,
    PIECES,
    SUMMARY,
    Script,
    chat_answer,
    chat_events,
    chunk,
    wait_until,
)

MESSAGES = [{"role": "user", "content": "hi"}]
REDUCED = {
    "budget": 512,
    "mode": "topk",
    "reason": "request",
    "context_tokens": 1004,
    "attended_fraction": 0.6,
    "recall": 0.97,
    "dense_fallback": None,
}


def test_chat_with_a_budget(gateway, engine):
    raw = gateway.openai().chat.completions.with_raw_response.create(
        model="tiny", messages=MESSAGES, extra_body={"lychee": {"budget": 512}}
    )
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hé 你好"
    assert answer.choices[0].message.reasoning_content == "hm"
    assert answer.usage.total_tokens == 1004
    assert answer.lychee == REDUCED
    assert engine.bodies[0]["custom_params"] == {"lychee_budget": 512}
    assert "lychee" not in engine.bodies[0]
    assert {name: value for name, value in raw.headers.items() if name.startswith("x-lychee-")} == {
        "x-lychee-budget": "512",
        "x-lychee-mode": "topk",
        "x-lychee-reason": "request",
        "x-lychee-attended-fraction": "0.6",
        "x-lychee-recall": "0.97",
        "x-lychee-context-tokens": "1004",
    }


@pytest.mark.parametrize("budget", [{}, {"budget": "auto"}, {"budget": 512}, {"min_recall": 0.97}], ids=str)
def test_a_policy_goes_to_the_engine_whoever_decides_on_the_budget(gateway, engine, budget):
    engine.script = Script(answer=chat_answer({**SUMMARY, "policy": "random", "realisable": True}))
    plain = gateway.chat(lychee=budget).json()["lychee"]
    named = gateway.chat(lychee={**budget, "policy": "random", "seed": 7}).json()["lychee"]
    without, with_policy = (body.get("custom_params") or {} for body in engine.bodies)
    assert with_policy == {**without, "lychee_policy": "random", "lychee_seed": 7}
    assert (named["reason"], named["policy"]) == (plain["reason"], "random")


def test_answers_of_other_policies_teach_nothing_of_recall(gateway, engine):
    for policy in ("oracle", None):
        engine.script = Script(answer=chat_answer({**SUMMARY, "policy": policy}))
        gateway.chat()
        assert len(gateway.http.get("/v1/sparsity").json()["recall"]) == (policy is None)


def test_cache_correction_is_asked_for_told_and_counted(gateway, engine):
    account = {"cache_correction": 32, "corrected_tokens": 64, "correction_seconds": 0.25}
    engine.script = Script(answer=chat_answer({**SUMMARY, **account}))
    answer = gateway.chat(lychee={"cache_correction": 32}).json()["lychee"]
    assert engine.bodies[0]["custom_params"] == {"lychee_cache_correction": 32}
    assert (answer["cache_correction"], answer["reason"]) == (32, "default")
    gateway.chat()
    assert gateway.total("lychee_corrected_tokens_total") == 128
    assert gateway.total("lychee_cache_correction_seconds_total") == 0.5


def test_streamed_chat_with_a_budget(gateway):
    stream = gateway.openai().chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, extra_body={"lychee": {"budget": 512}}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "".join(PIECES)
    assert [hasattr(chunk, "lychee") for chunk in chunks] == [False] * 5 + [True]
    assert chunks[-1].lychee == REDUCED
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_text_completion_both_ways(gateway, engine):
    choice = {"index": 0, "text": "a key", "finish_reason": "length"}
    answer = {"id": "1", "object": "text_completion", "created": 1, "model": "tiny", "choices": [choice]}
    last = {**answer, "lychee": SUMMARY}
    events = [b"data: " + json.dumps(last).encode() + b"\n\n", DONE]
    engine.script = Script(answer=last, events=events)
    client = gateway.openai()
    extra = {"lychee": {"mode": "ratio", "value": 0.1}}
    whole = client.completions.create(model="tiny", prompt="The", extra_body=extra)
    streamed = list(client.completions.create(model="tiny", prompt="The", stream=True, extra_body=extra))
    assert whole.choices[0].text == "a key"
    assert whole.lychee == streamed[0].lychee == REDUCED
    assert [body["custom_params"] for body in engine.bodies] == [{"lychee_mode": "ratio", "lychee_value": 0.1}] * 2


def test_all_other_fields_pass_unchanged(gateway, engine):
    body = {
        "model": "tiny",
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": [1, 2.5, None]}}},
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
        "seed": 2**70,
        "temperature": 0.1,
        "a_field_of_tomorrow": {"deep": [[["ä \ud83d"]]]},
        "custom_params": {"mine": 1, "flag": True, "none": None},
    }
    # httpx cannot write half a surrogate pair; JSON's escape can.
    sent = json.dumps({**body, "lychee": {"budget": "dense"}, "rid": "the client's"})
    reply = gateway.http.post(
        "/v1/chat/completions", content=sent, headers={"content-type": "application/json; charset=utf-8"}
    )
    assert reply.status_code == 200
    arrived = dict(engine.bodies[0])
    rid = arrived.pop("rid")
    assert re.fullmatch("[0-9a-f]{32}", rid)
    assert arrived == {**body, "custom_params": {**body["custom_params"], "lychee_budget": "dense"}}


def test_a_tool_call_comes_back(gateway, engine):
    call = {"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}
    answer = chat_answer()
    answer["choices"][0]["message"] = {"role": "assistant", "content": "", "tool_calls": [call]}
    events = [chunk({"role": "assistant", "tool_calls": [call]}), chunk({}, finish_reason="tool_calls"), DONE]
    engine.script = Script(answer=answer, events=events)
    tools = [{"type": "function", "function": {"name": "f"}}]
    client = gateway.openai()
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, tools=tools)
    chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, tools=tools, stream=True))
    assert whole.choices[0].message.tool_calls[0].function.name == "f"
    assert chunks[0].choices[0].delta.tool_calls[0].function.name == "f"


def test_nothing_asked_sends_nothing_and_reports_the_default(gateway, engine):
    engine.script = Script(answer=chat_answer({**SUMMARY, "budget": 1024}))
    for lychee in ({}, {"lychee": None}, {"lychee": {}}, {"lychee": {"budget": None}}):
        reply = gateway.chat(**lychee)
        assert reply.json()["lychee"]["reason"] == reply.headers["x-lychee-reason"] == "default"
    assert all("custom_params" not in body for body in engine.bodies)


def test_stream_is_passed_byte_for_byte_but_for_the_summary(gateway, engine):
    reply = gateway.chat(stream=True, lychee={"budget": 512})
    events = chat_events()
    assert reply.content.startswith(b"".join(events[:5]))
    assert reply.content.endswith(DONE)
    last = reply.content.removeprefix(b"".join(events[:5])).removesuffix(DONE)
    expected = json.loads(events[5].removeprefix(b"data: "))
    assert json.loads(last.removeprefix(b"data: ")) == {**expected, "lychee": REDUCED}
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"


def test_events_cut_anywhere_stay_whole(gateway, engine):
    stream = b"".join(chat_events())
    whole = gateway.chat(stream=True).content
    for size in (1, 7, 100):
        engine.script = Script(events=[stream[at : at + size] for at in range(0, len(stream), size)])
        assert gateway.chat(stream=True).content == whole


def test_usage_chunk_carries_the_summary(gateway, engine):
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}, "lychee": %s}\n\n'
    events = [*chat_events(None)[:-1], usage % json.dumps(SUMMARY).encode(), DONE]
    engine.script = Script(events=events)
    reply = gateway.chat(stream=True, stream_options={"include_usage": True}, lychee={"budget": 512})
    assert reply.content.startswith(b"".join(events[:-2]))
    last = json.loads(reply.content.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert last == {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}, "lychee": REDUCED}
    assert engine.bodies[0]["stream_options"] == {"include_usage": True}
    assert gateway.total("lychee_prompt_tokens_total") == 7
    assert gateway.total("lychee_generation_tokens_total") == 2


def test_chunks_are_passed_on_as_they_arrive(gateway, engine):
    gate = threading.Event()
    engine.script = Script(gate=gate)
    with gateway.http.stream("POST", "/v1/chat/completions", json={"messages": MESSAGES, "stream": True}) as reply:
        seen = b""
        chunks = reply.iter_raw()
        while not seen.endswith(b"\n\n") or b"stop" not in seen:
            seen += next(chunks)
        # The engine has not written its last event yet: what is here did not wait for the end.
        assert DONE not in seen
        gate.set()
        assert b"".join(chunks) == DONE


@pytest.mark.parametrize(
    ("lychee", "expected"),
    [
        (None, {"budget": "1024", "mode": "topk", "reason": "default"}),
        ({"budget": 64}, {"budget": "64", "mode": "topk", "reason": "request"}),
        ({"budget": "dense"}, {"budget": "dense", "reason": "request"}),
        ({"budget": "auto"}, {"budget": "auto", "mode": "topk", "reason": "auto"}),
        ({"mode": "ratio", "value": 0.5}, {"mode": "ratio", "reason": "request"}),
    ],
)
def test_stream_headers_say_what_is_known_before_the_answer(gateway, lychee, expected):
    headers = gateway.chat(stream=True, lychee=lychee).headers
    found = {name: value for name, value in headers.items() if name.startswith("x-lychee-")}
    assert found == {f"x-lychee-{name}": value for name, value in expected.items()}


def test_an_answer_that_says_lychee_is_left_alone(gateway, engine):
    """The word in a text, even as a whole string, is not the engine's summary."""
    events = [chunk({"content": "lychee"}), chunk({"lychee": 1}), DONE]
    engine.script = Script(events=events)
    assert gateway.chat(stream=True).content == b"".join(events)


def test_plain_sglang_behind_the_gateway(running, start_gateway):
    running.engine.info = None
    running.engine.script = Script(answer=chat_answer(None), events=chat_events(None))
    gateway = start_gateway()
    whole, streamed = gateway.chat(lychee={"budget": 64}), gateway.chat(stream=True)
    assert whole.json() == chat_answer(None)
    assert streamed.content == b"".join(chat_events(None))
    assert not [name for name in (*whole.headers, *streamed.headers) if name.startswith("x-lychee-")]
    assert gateway.total("lychee_answers_without_summary_total") == 2
    assert gateway.chat(lychee={"budget": 8193}).status_code == 400


def test_a_summary_that_cannot_be_read_is_passed_and_counted(gateway, engine):
    answer = chat_answer({"budget": "much"})
    engine.script = Script(answer=answer)
    assert gateway.chat().json() == answer
    assert gateway.total("lychee_answers_without_summary_total") == 1


def test_request_id_is_echoed_or_made_and_never_the_rid(gateway, engine):
    assert gateway.http.get("/livez", headers={"x-request-id": "mine ~1"}).headers["x-request-id"] == "mine ~1"
    for bad in ("", "x" * 129, "caf\xe9".encode("latin-1"), b"a\tb"):
        made = gateway.http.get("/livez", headers={"x-request-id": bad}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
    reply = gateway.http.post("/v1/chat/completions", json={"messages": MESSAGES}, headers={"x-request-id": "a" * 128})
    assert reply.headers["x-request-id"] == "a" * 128
    gateway.chat()
    first, second = (body["rid"] for body in engine.bodies)
    assert first != second
    assert "a" * 128 not in (first, second)


def test_trace_context_goes_to_the_engine_and_credentials_do_not(gateway, engine):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"traceparent": trace, "authorization": "Bearer secret", "cookie": "a=b"}
    gateway.http.post("/v1/chat/completions", json={"messages": MESSAGES}, headers=headers)
    assert engine.headers[0]["traceparent"] == trace
    assert not {"authorization", "cookie"} & set(engine.headers[0])


def test_plan_defaults_are_read_again_after_a_restart(running, gateway):
    running.server.kill()
    wait_until(lambda: not gateway.ready())
    running.engine.info = {**INFO, "context_window": 100, "defaults": {"budget": "dense", "mode": "topk"}}
    running.server.start()
    wait_until(gateway.ready)
    assert "from 1 to 100 " in gateway.chat(lychee={"budget": 101}).json()["error"]["message"]
    assert gateway.chat(stream=True).headers["x-lychee-budget"] == "dense"


def test_many_streams_at_once_stay_apart(gateway, engine):
    engine.script = Script(pause=0.01)
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(gateway.chat(stream=True).content)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 20
    assert len(set(answers)) == 1
