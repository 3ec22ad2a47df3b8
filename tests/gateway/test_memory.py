"""Documents beyond the window: the field on its way to the engine, progress and account on the way back."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from lychee_server.budget import merge_custom_params, parse_lychee
from lychee_server.errors import InvalidRequest
from lychee_server.memory import served_memory
from lychee_server.schemas import LycheeRequest, MemoryInfo
from tests.gateway.scripted_engine import DONE, INFO, PIECES, SUMMARY, Script, chat_answer, chunk

READ = {
    "mode": "text",
    "chunk": 512,
    "working_memory": 128,
    "document_tokens": 1500,
    "chunks": 3,
    "kept": 1,
    "skipped": 2,
    "tokens_read": 2000,
    "cached_tokens": 700,
    "gated": 1,
    "banked_steps": 1,
    "retries": 2,
    "second_pass": True,
    "seconds": 1.5,
}
MESSAGES: Any = [{"role": "user", "content": "A document.\n\nWhere is it?"}]


def progress(number: int) -> bytes:
    told = {"phase": "read", "chunk": number, "chunks": 3, "kept": 0, "says": f"reading chunk {number} of 3, kept 0"}
    return chunk({}, lychee={"memory": told})


def events() -> list[Any]:
    said = [chunk({"role": "assistant", "content": ""}), *[chunk({"content": piece}) for piece in PIECES]]
    last = chunk({}, finish_reason="stop", lychee={**SUMMARY, "memory": READ})
    return [*map(progress, (1, 2, 3)), *said, last, DONE]


@pytest.mark.parametrize(
    ("raw", "params"),
    [
        ({"memory": "text"}, {"lychee_memory": "text"}),
        ({"memory": "off", "budget": 64}, {"lychee_budget": 64, "lychee_memory": "off"}),
        (
            {"memory": "compressed", "chunk": 64, "working_memory": 32},
            {"lychee_memory": "compressed", "lychee_chunk": 64, "lychee_working_memory": 32},
        ),
        ({"memory": "text", "chunk": None}, {"lychee_memory": "text"}),
        ({"memory": "compressed", "ratio": 8}, {"lychee_memory": "compressed", "lychee_ratio": 8}),
    ],
)
def test_accepted(raw, params):
    asked = parse_lychee(raw, context_window=8192)
    assert merge_custom_params(None, asked) == params


def test_beside_a_recall_it_is_no_second_wish():
    asked = parse_lychee({"min_recall": 0.97, "memory": "text", "chunk": 512}, context_window=8192)
    assert asked.budget_alone() == LycheeRequest(min_recall=0.97)
    assert asked.besides() == {"memory": "text", "chunk": 512}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"memory": "much"}, 'lychee.memory is "much"; allowed: "text", "compressed", "off"'),
        ({"memory": True}, 'lychee.memory is true; allowed: "text", "compressed", "off"'),
        ({"memory": "text", "chunk": 63}, "lychee.chunk is 63; allowed: an integer from 64"),
        ({"memory": "text", "chunk": 1e3}, "lychee.chunk is 1000.0; allowed: an integer from 64"),
        ({"memory": "text", "working_memory": 31}, "lychee.working_memory is 31; allowed: an integer from 32"),
        ({"chunk": 512}, 'lychee.chunk is 512; allowed: only with lychee.memory "text" or "compressed"'),
        ({"memory": "off", "working_memory": 64}, "lychee.working_memory is 64; allowed: only with lychee.memory"),
        ({"memory": "text", "ratio": 4}, 'lychee.ratio is 4; allowed: only with lychee.memory "compressed"'),
        ({"ratio": 4}, 'lychee.ratio is 4; allowed: only with lychee.memory "compressed"'),
        ({"memory": "compressed", "ratio": 1}, "lychee.ratio is 1; allowed: an integer from 2"),
        ({"memory": "compressed", "ratio": 4.0}, "lychee.ratio is 4.0; allowed: an integer from 2"),
    ],
)
def test_refused(raw, message):
    with pytest.raises(InvalidRequest) as refused:
        parse_lychee(raw, context_window=8192)
    assert refused.value.message.startswith(message)


@pytest.mark.parametrize(
    ("info", "chat", "message"),
    [
        (MemoryInfo(modes=("text",), default="ask"), False, 'lychee.memory is "compressed"; allowed: only on /v1/chat'),
        (
            MemoryInfo(modes=("text",), default="ask"),
            True,
            'lychee.memory is "compressed"; allowed: "text", "off" (what',
        ),
        (None, True, 'lychee.memory is "compressed"; allowed: "off" (what this engine can do)'),
    ],
)
def test_what_route_or_engine_does_not_do_is_refused(info, chat, message):
    with pytest.raises(InvalidRequest) as refused:
        served_memory(LycheeRequest(memory="compressed"), info, chat=chat)
    assert refused.value.message.startswith(message)
    off = served_memory(LycheeRequest(memory="off"), info, chat=chat)
    # where nothing would be read there is nothing to switch off
    assert off == LycheeRequest(memory="off" if chat and info else None)


def test_a_ratio_that_the_engines_compressor_has_not_is_refused():
    info = MemoryInfo(modes=("text", "compressed"), default="ask", ratios=(2, 4))
    asked = LycheeRequest(memory="compressed", ratio=4)
    assert served_memory(asked, info, chat=True) == asked
    with pytest.raises(InvalidRequest, match=r"^lychee.ratio is 8; allowed: 2, 4 \(what this engine can do\)"):
        served_memory(LycheeRequest(memory="compressed", ratio=8), info, chat=True)


def test_compressed_blocks_and_their_account_pass_the_gateway(start_gateway, engine):
    read = {**READ, "mode": "compressed", "ratio": 8, "compressed_blocks": 3}
    compressed = {"modes": ["text", "compressed"], "default": "ask", "ratio": 4, "ratios": [4, 8], "compressor": "ab"}
    engine.info = {**INFO, "memory": compressed}
    engine.script = Script(answer=chat_answer({**SUMMARY, "memory": read}))
    answer = start_gateway().chat(lychee={"memory": "compressed", "ratio": 8})
    assert answer.json()["lychee"]["memory"] == read
    assert engine.bodies[0]["custom_params"] == {"lychee_memory": "compressed", "lychee_ratio": 8}


def test_an_engine_without_it_is_not_asked(start_gateway, engine):
    engine.info = {key: value for key, value in INFO.items() if key != "memory"}
    gateway = start_gateway()
    with pytest.raises(openai.BadRequestError, match="what this engine can do") as refused:
        gateway.openai().chat.completions.create(
            model="tiny", messages=MESSAGES, extra_body={"lychee": {"memory": "text"}}
        )
    assert refused.value.param == "lychee.memory"
    assert engine.bodies == []


def test_an_answer_and_what_is_counted_of_it(gateway, engine):
    engine.script = Script(answer=chat_answer({**SUMMARY, "memory": READ}))
    answer = gateway.chat(lychee={"memory": "text", "chunk": 512, "working_memory": 128})
    assert answer.json()["lychee"]["memory"] == READ
    assert not [name for name in answer.headers if "memory" in name]
    assert engine.bodies[0]["custom_params"] == {
        "lychee_memory": "text",
        "lychee_chunk": 512,
        "lychee_working_memory": 128,
    }
    assert gateway.total("lychee_memory_read_seconds_sum") == 1.5
    assert gateway.value("lychee_memory_chunks_total", outcome="kept") == 1
    assert gateway.value("lychee_memory_chunks_total", outcome="skipped") == 2
    assert gateway.value("lychee_memory_tokens_read_total") == 2000
    assert gateway.value("lychee_memory_cached_tokens_total") == 700
    assert gateway.value("lychee_memory_banked_steps_total") == 1
    assert gateway.value("lychee_memory_retries_total") == 2
    # its usage is what was read: it says nothing of how long texts are
    assert gateway.http.get("/v1/sparsity").json()["prompt_lengths"] == []


def test_an_answer_without_reading_has_no_such_object(gateway):
    answer = gateway.chat(lychee={"memory": "off"})
    assert "memory" not in answer.json()["lychee"]
    assert gateway.total("lychee_memory_read_seconds_count") == 0


def test_progress_passes_byte_for_byte_and_is_no_token(gateway, engine):
    engine.script = Script(events=events())
    body = {"messages": MESSAGES, "stream": True, "lychee": {"memory": "text"}}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
        raw = b"".join(response.iter_raw())
    assert raw.startswith(b"".join(map(progress, (1, 2, 3))))
    last = json.loads(raw.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert last["lychee"]["memory"] == READ
    assert last["lychee"]["reason"] == "default"
    assert gateway.total("lychee_time_to_first_token_seconds_count") == 1
    assert gateway.value("lychee_inter_token_latency_seconds_count") == len(PIECES) - 1


def test_the_openai_client_and_its_helper_pass_over_progress(gateway, engine):
    engine.script = Script(events=events())
    with gateway.openai().chat.completions.stream(
        model="tiny", messages=MESSAGES, extra_body={"lychee": {"memory": "text"}}
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "".join(PIECES)
    assert final.choices[0].message.role == "assistant"


def test_a_million_tokens_pass(gateway, engine):
    text = "word " * 1_000_000 + "\n\nWhere?"
    answer = gateway.chat(messages=[{"role": "user", "content": text}], lychee={"memory": "text"})
    assert answer.status_code == 200
    assert engine.bodies[0]["messages"][0]["content"] == text


def test_a_stream_without_usage_is_charged_what_was_read(gateway, engine):
    read = {**READ, "tokens_read": 1_000_000}
    last = chunk({}, finish_reason="stop", lychee={**SUMMARY, "memory": read})
    engine.script = Script(events=[progress(1), chunk({"content": "Here."}), last, DONE])
    body = {"messages": MESSAGES, "stream": True, "lychee": {"memory": "text"}}
    assert gateway.http.post("/v1/chat/completions", json=body).status_code == 200
    assert gateway.total("lychee_prompt_tokens_total") == 1_000_000


def test_times_of_many_calls_are_not_those_of_one_answer(gateway, engine):
    engine.script = Script(answer=chat_answer({**SUMMARY, "engine_seconds": 500.0, "memory": READ}))
    gateway.chat(lychee={"memory": "text"})
    assert gateway.total("lychee_gateway_overhead_seconds_count") == 0
    assert gateway.value("lychee_queue_time_seconds_count") == 0
