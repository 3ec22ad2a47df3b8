"""Answers, refusals and accounts of the whole chain: client, gateway, SGLang, attention backend."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.e2e.deployment import MODEL, chat, total, wait_for

if TYPE_CHECKING:
    from tests.e2e.deployment import Deployment

pytestmark = pytest.mark.engine

FRANCE = "What is the capital of France?"
# Some 400 tokens, so that budgets of 64 and more are sparse.
LONG = " ".join(f"Box {i} holds {i * 37 % 101} stones." for i in range(40)) + f" {FRANCE}"
OBJECT_KEYS = {"budget", "mode", "reason", "context_tokens", "attended_fraction", "recall", "dense_fallback"}


def messages(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_an_answer_says_what_it_ran_with(deployment: Deployment) -> None:
    answer = deployment.ask(LONG, lychee={"budget": 64}, max_tokens=12, ignore_eos=True)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    found = body["lychee"]
    assert found.keys() == OBJECT_KEYS
    assert (found["budget"], found["mode"], found["reason"]) == (64, "topk", "request")
    assert found["context_tokens"] == body["usage"]["prompt_tokens"] + 12
    assert found["dense_fallback"] is None
    assert 0 < found["attended_fraction"] < 1
    assert 0 < found["recall"] < 1
    assert answer.headers["x-lychee-budget"] == "64"
    assert answer.headers["x-lychee-mode"] == "topk"
    assert answer.headers["x-lychee-reason"] == "request"
    assert int(answer.headers["x-lychee-context-tokens"]) == found["context_tokens"]
    assert float(answer.headers["x-lychee-attended-fraction"]) == pytest.approx(found["attended_fraction"], abs=1e-3)
    assert float(answer.headers["x-lychee-recall"]) == pytest.approx(found["recall"], abs=1e-3)


def test_dense_reads_everything(deployment: Deployment) -> None:
    found = deployment.ask(LONG, lychee={"budget": "dense"}).json()["lychee"]
    assert (found["budget"], found["attended_fraction"], found["recall"]) == ("dense", 1.0, None)


def test_a_stream_has_the_object_in_its_last_chunk_and_no_empty_choices(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL,
        messages=messages(LONG),
        max_tokens=12,
        temperature=0,
        stream=True,
        extra_body={"lychee": {"budget": 64}, "ignore_eos": True},
    ) as stream:
        chunks = list(stream)
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    with_object = [bool((chunk.model_extra or {}).get("lychee")) for chunk in chunks]
    assert with_object == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["lychee"]["budget"] == 64


def test_a_stream_says_the_same_as_a_whole_answer(deployment: Deployment, client: openai.OpenAI) -> None:
    whole = deployment.ask(LONG, lychee={"budget": 64}).json()
    with client.chat.completions.create(
        model=MODEL,
        messages=messages(LONG),
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"lychee": {"budget": 64}},
    ) as stream:
        chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole["usage"]["completion_tokens"]
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["lychee"] == pytest.approx(whole["lychee"])


@pytest.mark.parametrize("budget", [0, -5, 1_000_000_000, "much", [1]], ids=str)
def test_a_wrong_budget_is_refused_by_name(client: openai.OpenAI, budget: object) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=messages(FRANCE), extra_body={"lychee": {"budget": budget}}
        )
    assert "lychee.budget" in refused.value.message
    assert refused.value.param == "lychee.budget"


def test_a_prompt_over_the_window_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r'8192.*"lychee": \{"memory": "text"\}'):
        client.chat.completions.create(model=MODEL, messages=messages("stone " * 9000), max_tokens=4)


FACT = "The access code of the violin locker is 4463300."


def test_a_document_is_read_block_by_block_and_the_same_again_out_of_the_bank(
    deployment: Deployment, client: openai.OpenAI
) -> None:
    boxes = [f"Box {i} holds {i * 37 % 101} stones." for i in range(60)]
    document = " ".join([*boxes[:40], FACT, *boxes[40:]])
    asked = [{"type": "text", "text": text} for text in (document, "What is the access code of the violin locker?")]

    def ask() -> tuple[list[str], str, Any]:
        with client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": asked}],  # type: ignore[list-item] # two text parts
            max_tokens=24,
            temperature=0,
            stream=True,
            extra_body={"lychee": {"memory": "text", "chunk": 256, "working_memory": 64}},
        ) as stream:
            chunks = list(stream)
        extras = [(chunk.model_extra or {}).get("lychee") or {} for chunk in chunks]
        progress = [extra["memory"]["says"] for extra in extras if "phase" in extra.get("memory", {})]
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        return progress, text, extras[-1]

    progress, text, account = ask()
    chunks = account["memory"]["chunks"]
    assert chunks >= 3
    assert progress[0] == f"reading chunk 1 of {chunks}, kept 0"
    assert progress[-1].startswith("answering from ")
    assert "4463300" in text
    assert account["memory"]["kept"] >= 1
    assert account["memory"]["document_tokens"] > 400
    assert account["reason"] == "default"
    again, same, banked = ask()
    assert again == progress
    assert same == text
    # a second pass, if there was one, is in the bank as well
    assert banked["memory"]["banked_steps"] >= chunks
    assert banked["memory"]["tokens_read"] == 0
    wait_for(lambda: deployment.engine_gauge("sglang:num_running_reqs") == 0, "everything has ended", 30)


def test_a_reading_that_is_broken_off_leaves_nothing_in_the_engine(deployment: Deployment) -> None:
    document = " ".join(f"Crate {i} holds {i * 41 % 103} bricks." for i in range(120))
    body = chat(f"{document}\n\nWhat does crate 7 hold?", lychee={"memory": "text", "chunk": 256}, stream=True)
    with deployment.http.stream("POST", "/v1/chat/completions", json=body) as response:
        told = [line for _, line in zip(range(3), response.iter_lines(), strict=False) if line]
    assert "reading chunk 2 of" in told[1]
    wait_for(lambda: deployment.engine_gauge("sglang:num_running_reqs") == 0, "the running step has ended", 30)
    wait_for(lambda: total(deployment.gateway_samples(), "lychee_requests_in_flight") == 0, "nobody waits for it", 30)


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "letters": {"type": "integer", "maximum": 99}},
        "required": ["city", "letters"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=messages("Name the capital of France and count its letters. Answer in JSON."),
        max_tokens=80,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
        extra_body={"lychee": {"budget": 64}},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found.keys() == {"city", "letters"}
    assert isinstance(found["city"], str)
    assert isinstance(found["letters"], int)


def test_tools_reach_the_engine(deployment: Deployment) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    plain = deployment.ask(FRANCE, max_tokens=4)
    with_tool = deployment.ask(FRANCE, max_tokens=4, tools=[tool])
    nonsense = deployment.ask(FRANCE, max_tokens=4, tools=[{"type": "function"}])
    assert (plain.status_code, with_tool.status_code) == (200, 200)
    assert nonsense.status_code == 400
    assert "tools" in nonsense.json()["error"]["message"]


def test_four_budgets_at_once_each_get_their_own(deployment: Deployment) -> None:
    budgets: list[object] = ["dense", 64, 128, 256]
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(deployment.ask, LONG, lychee={"budget": budget}, max_tokens=16, ignore_eos=True)
            for budget in budgets
        ]
    found = [call.result().json()["lychee"] for call in calls]
    assert [one["budget"] for one in found] == budgets
    dense, *sparse = [one["attended_fraction"] for one in found]
    assert dense == 1.0
    assert sparse == sorted(sparse)
    assert sparse[-1] < 1


def test_a_client_that_leaves_frees_the_engine(deployment: Deployment) -> None:
    before = deployment.gateway_samples()
    body = chat("Count from one to a thousand.", max_tokens=4000, ignore_eos=True, stream=True)
    with deployment.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        seen = [next(lines) for _ in range(6)]
        assert any(line.startswith("data: ") for line in seen)
        assert deployment.gateway_samples()["lychee_requests_in_flight"] == 1
    name = "lychee_client_disconnects_total"
    wait_for(lambda: deployment.gateway_samples()[name] == before[name] + 1, "the gateway has noticed", 10)
    # SGLang's gauges follow a decode log, so a next request makes them current
    assert deployment.ask(FRANCE, max_tokens=2).status_code == 200
    wait_for(lambda: deployment.engine_gauge("sglang:num_running_reqs") == 0, "nothing runs in the engine", 60)
    wait_for(lambda: deployment.engine_gauge("sglang:num_used_tokens") == 0, "no KV is held in the engine", 60)


def test_the_gateways_metrics_add_up(deployment: Deployment) -> None:
    before = deployment.gateway_samples()
    answers = [deployment.ask(LONG, lychee={"budget": 64}, max_tokens=8, ignore_eos=True).json() for _ in range(2)]
    answers.append(deployment.ask(LONG, lychee={"budget": "dense"}, max_tokens=8, ignore_eos=True).json())
    assert deployment.ask(LONG, lychee={"budget": 0}).status_code == 400
    added = deployment.gateway_samples()
    added.subtract(before)
    route = "route=/v1/chat/completions"
    assert added[f"lychee_requests_total{{{route},status=200}}"] == 3
    assert added[f"lychee_requests_total{{{route},status=400}}"] == 1
    assert added["lychee_budget_decisions_total{reason=request}"] == 3
    assert total(added, "lychee_generation_tokens_total") == 24
    assert total(added, "lychee_prompt_tokens_total") == sum(answer["usage"]["prompt_tokens"] for answer in answers)
    assert total(added, "lychee_effective_budget_tokens_sum") == 128
    assert total(added, "lychee_attended_fraction_ratio_sum") == pytest.approx(
        sum(answer["lychee"]["attended_fraction"] for answer in answers)
    )
    assert total(added, "lychee_recall_ratio_count") == 2
    share = total(added, "lychee_attended_kv_entries_total") / total(added, "lychee_dense_equivalent_kv_entries_total")
    assert share == pytest.approx(sum(answer["lychee"]["attended_fraction"] for answer in answers) / 3, abs=1e-3)
    assert total(added, "lychee_answers_without_summary_total") == 0


def test_the_api_page_answers(deployment: Deployment) -> None:
    page = deployment.http.get("/docs")
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    paths = httpx.get(f"{deployment.url}/openapi.json", trust_env=False).json()["paths"]
    assert "/v1/chat/completions" in paths
