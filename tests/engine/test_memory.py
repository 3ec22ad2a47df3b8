"""Reading in front of SGLang's own chat handler: handler, protocol and tokenizer are real, the scheduler is not."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.backend.memory import around_chat
from lychee_sgl.backend.memory_room import Room
from lychee_sgl.backend.summary import combine
from lychee_sgl.config import EngineConfig
from lychee_sgl.memory.gate import Classifier, Threshold, Weight
from tests.engine.memory_engine import DOCUMENT, FACT, QUESTION, Client, Manager, ask, error_of, events_of

if TYPE_CHECKING:
    from pathlib import Path

# SGLang warns of much where there is no GPU when it is imported
pytestmark = pytest.mark.filterwarnings("ignore")


async def test_an_answer_is_that_of_sglang_and_its_account_that_of_the_whole(manager: Manager) -> None:
    answer = await ask(manager)
    body = answer if isinstance(answer, dict) else json.loads(answer.body)
    assert body["choices"][0]["message"]["content"] == "Under the mat."
    told = body["lychee"]["memory"]
    assert (told["mode"], told["chunk"], told["working_memory"]) == ("text", 128, 256)
    assert (told["chunks"], told["kept"], told["skipped"], told["retries"]) == (4, 1, 3, 0)
    sent = [len(obj.input_ids) for obj in manager.asked]
    assert told["tokens_read"] == sum(sent[:-1])
    assert body["usage"]["prompt_tokens"] == sum(sent)
    assert body["usage"]["completion_tokens"] == 5 * len(sent)
    assert body["usage"]["total_tokens"] == sum(sent) + 5 * len(sent)
    last = manager.tokenizer.decode(manager.asked[-1].input_ids)
    assert "Be brief." in last
    assert f"user\n{FACT}\n\n{QUESTION}<" in last
    assert max(sent) < 600


async def test_a_stream_tells_how_far_it_is_and_then_answers(manager: Manager) -> None:
    chunks = await events_of(await ask(manager, stream=True, stream_options={"include_usage": True}))
    progress = [chunk for chunk in chunks if "phase" in chunk.get("lychee", {}).get("memory", {})]
    assert chunks[: len(progress)] == progress
    assert [chunk["lychee"]["memory"]["says"] for chunk in progress][:2] == [
        "reading chunk 1 of 4, kept 0",
        "reading chunk 2 of 4, kept 0",
    ]
    assert progress[-1]["lychee"]["memory"]["phase"] == "answer"
    assert {(chunk["object"], json.dumps(chunk["choices"][0]["delta"])) for chunk in progress} == {
        ("chat.completion.chunk", "{}")
    }
    assert {chunk["id"] for chunk in chunks} == {manager.asked[-1].rid}
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == "Under the mat."
    assert chunks[-1]["usage"]["prompt_tokens"] == sum(len(obj.input_ids) for obj in manager.asked)


async def test_the_same_question_again_comes_from_the_bank(manager: Manager) -> None:
    await ask(manager)
    first = len(manager.asked)
    body = json.loads((await ask(manager)).body)
    assert body["lychee"]["memory"]["banked_steps"] == 4
    assert len(manager.asked) - first < first


async def test_other_weights_or_another_tenant_do_not_share_the_bank(manager: Manager) -> None:
    await ask(manager)
    manager.server_args.weight_version = "2"
    assert json.loads((await ask(manager)).body)["lychee"]["memory"]["banked_steps"] == 0
    assert json.loads((await ask(manager, cache_salt="mine")).body)["lychee"]["memory"]["banked_steps"] == 0


async def test_a_model_written_anew_into_its_folder_does_not_share_the_bank(manager: Manager, tmp_path: Path) -> None:
    """A training that is repeated into one folder left its predecessor's notes to the next start."""
    manager.server_args.model_path = str(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    await ask(manager)
    assert json.loads((await ask(manager)).body)["lychee"]["memory"]["banked_steps"] == 4
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert json.loads((await ask(manager)).body)["lychee"]["memory"]["banked_steps"] == 0


async def test_a_failing_scheduler_is_asked_again_and_then_named(manager: Manager) -> None:
    manager.failing = 2
    assert json.loads((await ask(manager)).body)["lychee"]["memory"]["retries"] == 2
    manager.failing = 99
    status, message, _ = error_of(await ask(manager, text=f"{DOCUMENT[:700]}Why?"))
    assert status == 500
    assert message.startswith("chunk 1 of 2 failed 3 times: out of memory")
    events = await events_of(await ask(manager, text=f"{DOCUMENT[:700]}Who?", stream=True))
    assert events[-1]["error"]["code"] == 500
    assert "chunk 1 of 2 failed 3 times" in events[-1]["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.timeout(30)
async def test_a_client_that_leaves_ends_the_running_step(manager: Manager, stream: bool) -> None:
    client, manager.hang_at = Client(), 0

    async def consume() -> Any:
        answer = await ask(manager, client, stream=stream)
        return [event async for event in answer.body_iterator] if stream else error_of(answer)

    task = asyncio.create_task(consume())
    await manager.began.wait()
    client.gone = True
    left = await task
    assert manager.aborted == [manager.asked[0].rid]
    assert len(manager.asked) == 1
    assert (left[0] == 499) if not stream else all("error" not in event for event in left)


async def test_a_stream_that_is_closed_ends_the_running_step(manager: Manager) -> None:
    manager.hang_at = 0
    answer = await ask(manager, stream=True)

    async def consume() -> None:
        async for _ in answer.body_iterator:
            pass

    task = asyncio.create_task(consume())
    await manager.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await answer.body_iterator.aclose()
    assert manager.aborted == [manager.asked[0].rid]


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        (
            {"custom_params": {"lychee_memory": "compressed"}},
            "lychee_memory is 'compressed', allowed: 'text', 'off'; this engine has no compressor",
            "lychee_memory",
        ),
        (
            {"custom_params": {"lychee_memory": "best"}},
            "lychee_memory is 'best', allowed: 'text', 'compressed', 'off'",
            "lychee_memory",
        ),
        (
            {"custom_params": {"lychee_memory": "text", "lychee_chunk": 2000}},
            "lychee_chunk is 2000, allowed: up to",
            "lychee_chunk",
        ),
        ({"text": "One paragraph."}, "messages: the user's text is one paragraph", "messages"),
        ({"n": 2}, "n is 2, allowed: 1", "n"),
        ({"text": "a \ud800 b\n\nWhat?"}, "messages hold half a surrogate pair", "messages"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_read_is_refused_by_name(
    manager: Manager, fields, message: str, param: str, stream: bool
) -> None:
    status, said, named = error_of(await ask(manager, stream=stream, **fields))
    assert (status, named) == (400, param)
    assert said.startswith(message)
    assert manager.asked == []


async def test_off_is_an_ordinary_chat(manager: Manager) -> None:
    body = await ask(manager, text="Hello", custom_params={"lychee_memory": "off", "lychee_budget": 64})
    assert not hasattr(body, "body"), body.body
    assert body.choices[0].message.content == "Under the mat."
    (obj,) = manager.asked
    assert obj.sampling_params["custom_params"] == {"lychee_budget": 64}


@pytest.mark.parametrize(("words", "read"), [(100, False), (2500, True)])
async def test_auto_reads_what_does_not_fit(tokenizer: Any, words: int, read: bool) -> None:
    manager = Manager(tokenizer, EngineConfig(memory="auto", memory_bank_bytes=0))
    answer = await ask(manager, text=f"{'word ' * words}\n\nWhy?", custom_params=None)
    assert hasattr(answer, "body") is read
    assert (len(manager.asked) > 1) is read


async def test_off_in_the_settings_refuses_and_says_so(tokenizer: Any) -> None:
    manager = Manager(tokenizer, EngineConfig(memory="off", memory_bank_bytes=0))
    assert error_of(await ask(manager))[1] == "lychee_memory is 'text', allowed: 'off' (LYCHEE_MEMORY is off)"


async def test_a_refusal_for_length_names_the_field(manager: Manager) -> None:
    from fastapi.responses import ORJSONResponse

    async def refuse(*_: Any) -> Any:
        return ORJSONResponse(
            {"message": "The input (9000 tokens) is longer than the model's context length (2048 tokens)."}, 400
        )

    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest

    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "x"}])
    answer = await around_chat(refuse, SimpleNamespace(tokenizer_manager=manager), request, Client())
    assert answer.status_code == 400
    assert json.loads(answer.body)["message"] == (
        "The input (9000 tokens) is longer than the model's context length (2048 tokens); a longer document is read "
        'block by block with "lychee": {"memory": "text"} (at the engine itself: "custom_params": '
        '{"lychee_memory": "text"})'
    )


async def test_a_bank_that_cannot_be_made_costs_no_answer(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    manager = Manager(tokenizer, EngineConfig(memory_bank=tmp_path / "file" / "bank.sqlite"))
    assert json.loads((await ask(manager)).body)["lychee"]["memory"]["kept"] == 1


def test_summaries_of_several_requests_add_up() -> None:
    one = {
        "budget": 64, "mode": "topk", "value": None, "context_tokens": 900, "attended_tokens": 10, "dense_tokens": 40,
        "decode_steps": 4, "sparse_steps": 4, "attended_fraction": 0.25, "recall": 0.5, "recall_steps": 1,
        "cache_correction": 4, "corrected_tokens": 4, "correction_seconds": 0.5,
        "dense_fallback": None, "mean_batch": 1.0, "queue_seconds": 0.5, "decode_seconds": None, "engine_seconds": 2.0,
    }  # fmt: skip
    other = {**one, "budget": "dense", "mode": None, "context_tokens": 80, "attended_tokens": 60, "dense_tokens": 60,
             "decode_steps": 12, "sparse_steps": 0, "recall": None, "recall_steps": 0, "dense_fallback": "dense_below",
             "mean_batch": 3.0, "decode_seconds": 1.0}  # fmt: skip
    assert combine([one, other]) == {
        "budget": "dense", "mode": None, "value": None, "context_tokens": 900, "attended_tokens": 70,
        "dense_tokens": 100, "decode_steps": 16, "sparse_steps": 4, "attended_fraction": 0.7, "recall": 0.5,
        "recall_steps": 1, "dense_fallback": "dense_below", "mean_batch": 2.5, "queue_seconds": 1.0,
        "decode_seconds": 1.0, "engine_seconds": 4.0, "cache_correction": 4, "corrected_tokens": 8,
        "correction_seconds": 1.0,
    }  # fmt: skip


def test_a_user_without_a_home_chats_without_a_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number of no user: no chat fails for a file that it would not use."""

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    chosen = SimpleNamespace(describe=dict)
    engine = SimpleNamespace(config=EngineConfig(), device="cpu", chosen=chosen, compressor=None, weights=(None, None))
    assert Room.of(SimpleNamespace(), engine).bank is None


async def test_an_oracle_gate_is_for_measurements_alone(tokenizer: Any) -> None:
    params = {"lychee_memory": "text", "lychee_chunk": 128, "lychee_gate": [FACT]}
    manager = Manager(tokenizer, EngineConfig(memory_bank_bytes=0))
    status, said, named = error_of(await ask(manager, custom_params=params))
    assert (status, named) == (400, "lychee_gate")
    assert said.endswith("allowed: only where LYCHEE_MEMORY_ORACLE is 1, for measurements")
    manager = Manager(tokenizer, EngineConfig(memory_bank_bytes=0, memory_oracle=True, memory_gate=Threshold(99.0)))
    told = json.loads((await ask(manager, custom_params=params)).body)["lychee"]["memory"]
    assert (told["kept"], told["gated"]) == (1, 3)
    assert all("lychee_gate" not in str(obj.sampling_params) for obj in manager.asked)
    told = json.loads((await ask(manager, custom_params={**params, "lychee_gate": None})).body)["lychee"]["memory"]
    assert (told["kept"], told["gated"]) == (0, 4)
    told = json.loads((await ask(manager, custom_params={**params, "lychee_gate": "off"})).body)["lychee"]["memory"]
    assert (told["kept"], told["gated"]) == (1, 0)


async def test_a_gate_of_another_model_is_named_in_the_log(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    gain = Weight(name="gain_mean", mean=0.0, scale=1.0, weight=1.0)
    gate = Classifier(weights=(gain,), bias=0.0, threshold=0.5, model="Other-1B")
    manager = Manager(tokenizer, EngineConfig(memory_bank_bytes=0, memory_gate=gate))
    assert json.loads((await ask(manager)).body)["lychee"]["memory"]["chunks"] == 4
    assert "The memory gate was made for Other-1B, this model is model" in caplog.text
