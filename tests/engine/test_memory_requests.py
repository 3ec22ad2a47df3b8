"""What a request asks of its answer reaches SGLang, and what SGLang would refuse is refused before anything is read."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.config import EngineConfig
from lychee_sgl.memory import loop
from tests.engine.memory_engine import DOCUMENT, QUESTION, Client, Manager, ask, error_of, events_of

if TYPE_CHECKING:
    from pathlib import Path

# SGLang warns of much where there is no GPU when it is imported
pytestmark = pytest.mark.filterwarnings("ignore")

SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_and_tools_reach_the_answer(manager: Manager, stream: bool) -> None:
    answer = await ask(manager, stream=stream, response_format=FORMAT, stop=["!"], seed=7)
    if stream:
        assert "error" not in (await events_of(answer))[-1]
    final = manager.asked[-1].sampling_params
    assert json.loads(final["json_schema"]) == SCHEMA
    assert (final["stop"], final["sampling_seed"]) == (["!"], 7)
    assert all("json_schema" not in obj.sampling_params for obj in manager.asked[:-1])
    answer = await ask(manager, tools=[TOOL], tool_choice="required", chat_template_kwargs={"reasoning_effort": "low"})
    assert answer.status_code == 200
    assert manager.asked[-1].sampling_params.get("json_schema") or manager.asked[-1].sampling_params["structural_tag"]


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"max_tokens": 1800}, "max_tokens is 1800, allowed: up to 1", "max_tokens"),
        ({"temperature": -1.0}, "temperature must be a non-negative", None),
        ({"tools": [{"type": "function", "function": {"name": "w", "parameters": {"type": "odd"}}}]}, "Tool 0", None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "schema_ is required", None),
        ({"custom_params": {"lychee_memory": "text", "lychee_budget": 0}}, "lychee_budget is 0, allowed", None),
        (
            {"chat_template_kwargs": {"tokenize": True}},
            "chat_template_kwargs.tokenize is given, allowed: what",
            "chat_template_kwargs.tokenize",
        ),
        ({"chat_template_kwargs": {"chat_template": "{% if"}}, "", None),
        ({"cache_salt": ["a"]}, "Value of cache_salt must be a string", "cache_salt"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_answer_cannot_be_is_refused_before_reading(
    manager: Manager, fields, message: str, param: str | None, stream: bool
) -> None:
    status, said, named = error_of(await ask(manager, stream=stream, **fields))
    assert (status, named) == (400, param)
    assert said
    assert said.startswith(message)
    assert manager.asked == []


async def test_what_only_streams_cannot_have_is_refused_with_a_status(manager: Manager) -> None:
    assert error_of(await ask(manager, stream=True, return_meta_info=True))[0] == 400
    assert manager.asked == []


async def test_system_messages_that_leave_no_room_are_refused(manager: Manager) -> None:
    messages = [{"role": "system", "content": "word " * 1780}, {"role": "user", "content": f"{DOCUMENT}{QUESTION}"}]
    status, said, named = error_of(await ask(manager, messages=messages, max_tokens=None))
    assert (status, named) == (400, "messages")
    assert "no token is left for the answer beside lychee_working_memory 256 and" in said
    assert manager.asked == []


async def test_auto_does_not_read_for_an_answer_that_cannot_be(tokenizer: Any) -> None:
    manager = Manager(tokenizer, EngineConfig(memory="auto", memory_bank_bytes=0))
    await ask(manager, text="Hello there.\n\nHow are you?", custom_params=None, max_tokens=2048)
    assert len(manager.asked) == 1  # SGLang's, to be refused


@pytest.mark.parametrize("stream", [False, True])
async def test_a_mark_of_ours_in_the_texts_is_only_text(manager: Manager, stream: bool) -> None:
    mark = "\u2403block\u2403"
    text = f"{DOCUMENT.replace('the mat.', f'the mat {mark} outside.')}{QUESTION} {mark}"
    answer = await ask(manager, text=text, stream=stream)
    if stream:
        assert "error" not in (await events_of(answer))[-1]
    assert answer.status_code == 200
    assert f"mat {mark} outside." in manager.tokenizer.decode(manager.asked[-1].input_ids)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_draft_that_fails_is_tried_again_and_then_named(manager: Manager, stream: bool) -> None:
    manager.failing_drafts = 2
    answer = await ask(manager, stream=stream)
    if stream:
        assert "error" not in (await events_of(answer))[-1]
    else:
        assert json.loads(answer.body)["lychee"]["memory"]["retries"] == 2
    assert manager.failing_drafts == 0
    manager.failing_drafts = 3
    answer = await ask(manager, stream=stream, text=f"{DOCUMENT}Where is the key of Oslo?")
    error = (await events_of(answer))[-1]["error"] if stream else json.loads(answer.body)
    assert error["message"].startswith("the draft of the answer failed 3 times: the queue is full; what was read")
    assert (error["type"], error["code"]) == ("BlockFailed", 500)


@pytest.mark.timeout(60)
async def test_a_client_that_leaves_while_the_document_is_cut(manager: Manager, monkeypatch) -> None:
    client, gone, cut = Client(), threading.Event(), loop.cut
    monkeypatch.setattr(loop, "cut", lambda *args: (gone.wait(30), cut(*args))[1])
    asking = asyncio.create_task(ask(manager, client, stream=True))
    client.gone = True
    answer = await asking
    gone.set()
    assert answer.status_code == 499
    assert manager.asked == []


async def test_what_nobody_thought_of_has_the_shape_of_an_error(manager: Manager, monkeypatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(loop, "cut", broken)
    for stream in (False, True):
        status, said, _ = error_of(await ask(manager, stream=stream))
        assert (status, said) == (500, "reading failed")


async def test_off_makes_no_bank(tokenizer: Any, tmp_path: Path) -> None:
    manager = Manager(tokenizer, EngineConfig(memory="off", memory_bank=tmp_path / "bank.sqlite"))
    await ask(manager, text="Hello", custom_params=None)
    assert not (tmp_path / "bank.sqlite").exists()


async def test_cached_tokens_in_usage_are_those_of_the_whole(manager: Manager) -> None:
    manager.server_args.enable_cache_report = True
    body = json.loads((await ask(manager)).body)
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 3 * len(manager.asked)


async def test_weights_exchanged_while_reading_share_no_step(manager: Manager, monkeypatch) -> None:
    generate = manager.generate_request
    manager.server_args.weight_version = "1"

    async def exchanging(obj: Any, raw: Any = None):
        if len(manager.asked) == 5:
            manager.server_args.weight_version = "2"
        async for output in generate(obj, raw):
            yield output

    monkeypatch.setattr(manager, "generate_request", exchanging)
    await ask(manager)
    monkeypatch.setattr(manager, "generate_request", generate)
    banked = []
    for version in ("1", "2"):
        manager.server_args.weight_version = version
        banked.append(json.loads((await ask(manager)).body)["lychee"]["memory"]["banked_steps"])
    assert min(banked) >= 1
    # of four blocks, the one that both had a part in is nobody's
    assert sum(banked) == 3
