"""SGLang's chat handler with its protocol and a real tokenizer, over a scheduler that is not there."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lychee_sgl.backend.memory import around_chat
from lychee_sgl.backend.request import BudgetRequest

if TYPE_CHECKING:
    from lychee_sgl.config import EngineConfig

FACT = "The key of the Oslo office is under the mat."
QUESTION = "Where is the key of the Oslo office?"
FILLER = [f"Nothing of interest was said on day {day}, and nobody was there to hear it.\n\n" for day in range(24)]
DRAFT_TOKENS = 64
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
            vocab_size=len(tokenizer),
            is_multimodal=False,
            get_default_sampling_params=dict,
            hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"], model_type="llama"),
        )
        self.lychee = SimpleNamespace(
            config=config,
            device="cpu",
            model="model",
            chosen=SimpleNamespace(describe=lambda: "plan"),
            compressor=None,
            weights=(Args.model_path, None),
        )
        self.lychee.spec = self._spec
        self.request_logger = SimpleNamespace(log_requests=False)
        self.lora_registry = None
        self.allow_auto_truncate, self.validate_total_tokens, self.num_reserved_tokens = False, True, 0
        self.asked: list[Any] = []
        self.aborted: list[str] = []
        self.hang_at: int | None = None
        self.failing = 0
        self.failing_drafts = 0
        self.began = asyncio.Event()

    @staticmethod
    def _spec(obj: Any, prompt_tokens: int) -> None:
        BudgetRequest.from_custom_params(obj.sampling_params.get("custom_params"), 2048)

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
        if self.failing_drafts and not quotes and obj.sampling_params["max_new_tokens"] == DRAFT_TOKENS:
            self.failing_drafts -= 1
            raise HTTPException(503, detail="the queue is full")
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
