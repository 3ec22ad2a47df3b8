"""Reading in front of SGLang's own chat handler: handler, protocol and tokenizer are real, the scheduler is not."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.backend.memory import around_chat
from lychee_sgl.backend.summary import combine
from lychee_sgl.config import EngineConfig

if TYPE_CHECKING:
    from pathlib import Path

# SGLang warns of much where there is no GPU when it is imported
pytestmark = pytest.mark.filterwarnings("ignore")

FACT = "The key of the Oslo office is under the mat."
QUESTION = "Where is the key of the Oslo office?"
FILLER = [f"Nothing of interest was said on day {day}, and nobody was there to hear it.\n\n" for day in range(24)]
DOCUMENT = "".join([*FILLER[:12], FACT, "\n\n", *FILLER[12:]])


class Args:
    """SGLang's arguments: what is not named here is not set."""

    model_path = "model"
    served_model_name = "model"
    tokenizer_worker_num = 1

    def __getattr__(self, name: str) -> None:
        return None


class Template:
    """SGLang's choice of a chat template: the tokenizer's own."""

    jinja_template_content_format = "string"

    def __getattr__(self, name: str) -> None:
        return None


class Manager:
    """Stands for the TokenizerManager: answers calls by the text of their prompts."""

    def __init__(self, tokenizer: Any, config: EngineConfig) -> None:
        self.tokenizer, self.server_args = tokenizer, Args()
        self.model_config = SimpleNamespace(
            context_len=2048,
            is_multimodal=False,
            get_default_sampling_params=dict,
            hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"], model_type="llama"),
        )
        self.lychee = SimpleNamespace(config=config, device="cpu", chosen=SimpleNamespace(describe=lambda: "plan"))
        self.request_logger = SimpleNamespace(log_requests=False)
        self.lora_registry = None
        self.asked: list[Any] = []
        self.aborted: list[str] = []
        self.hang_at: int | None = None
        self.failing = 0
        self.began = asyncio.Event()

    def abort_request(self, rid: str) -> None:
        self.aborted.append(rid)

    def create_abort_task(self, obj: Any) -> None:
        return None

    async def generate_request(self, obj: Any, raw: Any = None):
        from fastapi import HTTPException

        self.asked.append(obj)
        prompt = self.tokenizer.decode(obj.input_ids)
        if len(self.asked) - 1 == self.hang_at:
            self.began.set()
            await asyncio.Event().wait()
        if self.failing and "Copy the sentences" in prompt:
            self.failing -= 1
            raise HTTPException(503, detail="out of memory")
        quotes = "Copy the sentences" in prompt
        text = (FACT if FACT in prompt else "none") if quotes else "Under the mat."
        meta = {
            "id": obj.rid or "named-by-sglang",
            "prompt_tokens": len(obj.input_ids),
            "completion_tokens": 5,
            "cached_tokens": 3,
            "finish_reason": {"type": "stop", "matched": 2},
            "weight_version": "1",
        }
        if obj.return_logprob:
            likely = -1.0 if "under the mat" in prompt.split("<|im_start|>user")[1][:60] else -3.0
            start = obj.logprob_start_len
            meta["input_token_logprobs"] = [(None, 0, None), *[(likely, 1, None)] * (len(obj.input_ids) - start - 1)]
        if obj.stream:
            yield {"text": text[:5], "index": 0, "meta_info": {**meta, "finish_reason": None}}
        yield {"text": text, "index": 0, "meta_info": meta}


class Client:
    """The part of Starlette's request that is looked at."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.gone = False

    async def is_disconnected(self) -> bool:
        return self.gone


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from lychee_sgl.models.embedded import ensure_unpacked

    return AutoTokenizer.from_pretrained(str(ensure_unpacked(lambda _: None)))


@pytest.fixture
def manager(tokenizer: Any, tmp_path: Path) -> Manager:
    return Manager(tokenizer, EngineConfig(memory_bank=tmp_path / "bank.sqlite"))


async def ask(manager: Manager, client: Client | None = None, text: str | None = None, **fields: Any) -> Any:
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat

    serving = OpenAIServingChat(manager, Template())
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": text or f"{DOCUMENT}{QUESTION}"},
    ]
    body = {
        "model": "model",
        "messages": messages,
        "max_tokens": 20,
        "custom_params": {"lychee_memory": "text", "lychee_chunk": 128},
    }
    request = ChatCompletionRequest.model_validate({**body, **fields})
    return await around_chat(OpenAIServingChat.handle_request, serving, request, client or Client())


async def events_of(answer: Any) -> list[Any]:
    assert answer.media_type == "text/event-stream", answer.body
    lines = [event async for event in answer.body_iterator]
    assert lines[-1] == "data: [DONE]\n\n"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def error_of(answer: Any) -> tuple[int, str, str | None]:
    body = json.loads(answer.body)
    return answer.status_code, body["message"], body["param"]


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
    client, manager.hang_at = Client(), 2

    async def consume() -> Any:
        answer = await ask(manager, client, stream=stream)
        return [event async for event in answer.body_iterator] if stream else error_of(answer)

    task = asyncio.create_task(consume())
    await manager.began.wait()
    client.gone = True
    left = await task
    assert manager.aborted == [manager.asked[2].rid]
    assert len(manager.asked) == 3
    assert (left[0] == 499) if not stream else all("error" not in event for event in left)


async def test_a_stream_that_is_closed_ends_the_running_step(manager: Manager) -> None:
    manager.hang_at = 3
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
    assert manager.aborted == [manager.asked[3].rid]


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
        "dense_fallback": None, "mean_batch": 1.0, "queue_seconds": 0.5, "decode_seconds": None, "engine_seconds": 2.0,
    }  # fmt: skip
    other = {**one, "budget": "dense", "mode": None, "context_tokens": 80, "attended_tokens": 60, "dense_tokens": 60,
             "decode_steps": 12, "sparse_steps": 0, "recall": None, "recall_steps": 0, "dense_fallback": "dense_below",
             "mean_batch": 3.0, "decode_seconds": 1.0}  # fmt: skip
    assert combine([one, other]) == {
        "budget": "dense", "mode": None, "value": None, "context_tokens": 900, "attended_tokens": 70,
        "dense_tokens": 100, "decode_steps": 16, "sparse_steps": 4, "attended_fraction": 0.7, "recall": 0.5,
        "recall_steps": 1, "dense_fallback": "dense_below", "mean_batch": 2.5, "queue_seconds": 1.0,
        "decode_seconds": 1.0, "engine_seconds": 4.0,
    }  # fmt: skip
