"""The engine's HTTP side: checks budgets before they reach a scheduler, and puts the summary into OpenAI answers.

Contract: DESIGN.md 4.2. Runs in SGLang's HTTP process; what it knows of the engine hangs on the TokenizerManager.
"""

from __future__ import annotations

import functools
import json
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lychee_sgl import __version__
from lychee_sgl.backend.correction import refusals
from lychee_sgl.backend.memory_blocks import announce, choose_compressor
from lychee_sgl.backend.memory_model import dtype_name
from lychee_sgl.backend.plans import ChosenPlan, choose_plan, model_shape
from lychee_sgl.backend.request import POLICIES, BudgetRequest, RowSpec, resolve
from lychee_sgl.backend.summary import INFO_KEY, Times, summarise
from lychee_sgl.config import EngineConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pydantic import BaseModel

    from lychee_sgl.compressor.folder import Described

DONE = "data: [DONE]\n\n"
SEEN = "lychee_seen"
"""Attribute of a request in flight: what its outputs said last, by choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What the HTTP process knows of the engine's backend."""

    chosen: ChosenPlan
    config: EngineConfig
    context_window: int
    device: str
    model: str
    uncorrectable: str | None = None
    compressor: Described | None = None
    weights: tuple[str | None, str | None] = (None, None)

    @classmethod
    def of(cls, manager: Any) -> Engine | None:
        """Gives the engine behind a TokenizerManager; None if it does not run our backend."""
        if not hasattr(manager, "lychee"):
            args = manager.server_args
            ours = "lychee" in (args.attention_backend, args.decode_attention_backend)
            manager.lychee = cls._load(manager) if ours else None
        engine: Engine | None = manager.lychee
        return engine

    @classmethod
    def _load(cls, manager: Any) -> Engine:
        args, config = manager.server_args, EngineConfig.from_env()
        compressor = choose_compressor(config, args, manager.model_config)
        if compressor is not None:
            device = config.compressor_device or args.device
            announce(compressor, model=args.model_path, device=device, dtype=dtype_name(manager))
        return cls(
            chosen=choose_plan(
                config.heads, model_shape(manager.model_config.hf_text_config, args.model_path), args.served_model_name
            ),
            config=config,
            context_window=manager.model_config.context_len,
            device=args.device,
            model=args.served_model_name,
            uncorrectable=next((what for refused, what in refusals(args, manager.model_config) if refused), None),
            compressor=compressor,
            weights=(args.model_path, args.weight_version),
        )

    def spec(self, obj: Any, prompt_tokens: int) -> RowSpec:
        """Reads and resolves what a request asks for.

        Raises:
            ValueError: something is not allowed; the message names it, its value and what is allowed.
        """
        return self._spec(_all_params(obj)[0], prompt_tokens)

    def _spec(self, params: dict[str, Any] | None, prompt_tokens: int) -> RowSpec:
        rivals, every = self.config.rival_policies, self.config.cache_correction
        asked = BudgetRequest.from_custom_params(params, self.context_window, rivals=rivals)
        spec = resolve(asked, self.chosen.plan.defaults, prompt_tokens, cache_correction=every)
        if spec.cache_correction and self.uncorrectable:
            number = spec.cache_correction
            raise ValueError(f"lychee_cache_correction is {number}, allowed with {self.uncorrectable}: 0")
        return spec

    def check(self, obj: Any) -> None:
        """Checks what a request asks for; of SGLang's own `/generate` each prompt of a batch may ask for its own.

        Raises:
            ValueError: as `spec`.
        """
        for params in _all_params(obj):
            self._spec(params, 0)

    def info(self) -> dict[str, Any]:
        """Gives the answer of `GET /lychee/info`."""
        defaults = self.chosen.plan.to_dict()["defaults"]
        return {
            "version": __version__,
            "plan": self.chosen.describe(),
            "defaults": defaults,
            "dense_below": self.config.resolved_dense_below(self.device),
            "recall_every": self.config.recall_every,
            "cache_correction": self.config.cache_correction,
            "policies": [*POLICIES] if self.config.rival_policies else ["plan"],
            "context_window": self.context_window,
            "model": self.model,
            "device": self.device,
            "sglang": version("sglang"),
            "memory": self._memory(),
        }

    def _memory(self) -> dict[str, Any]:
        """How documents are read."""
        modes = [] if self.config.memory == "off" else ["text"]
        gate = self.config.memory_gate.identity if self.config.memory_gate is not None else None
        told: dict[str, Any] = {"modes": modes, "default": self.config.memory, "gate": gate}
        if self.compressor is None:
            return told
        ratios = {
            "ratio": self.config.compressor_ratio or self.compressor.ratio,
            "ratios": [*self.compressor.shape.ratios],
        }
        return {**told, "modes": [*modes, "compressed"], **ratios, "compressor": self.compressor.sha256}


def _all_params(obj: Any) -> list[dict[str, Any] | None]:
    """Gives the `custom_params` of a request, of each prompt where they have some of their own; at least one."""
    given = obj.sampling_params
    several = given if isinstance(given, list) and given else [given]
    return [
        each.get("custom_params") if isinstance(each, dict) else getattr(each, "custom_params", None)
        for each in several
    ]


async def watch(
    original: Callable[..., AsyncGenerator[Any, None]], manager: Any, obj: Any, *args: Any, **kwargs: Any
) -> AsyncGenerator[Any, None]:
    """Stands around `TokenizerManager.generate_request`: checks the budget, remembers what the outputs say last.

    Raises:
        ValueError: the budget is not allowed; SGLang answers 400 with the message.
    """
    engine = Engine.of(manager)
    watched = engine is not None and hasattr(obj, "sampling_params")
    seen: dict[int, dict[str, Any]] = {}
    if watched and engine is not None:
        engine.check(obj)
        setattr(obj, SEEN, seen)
    in_parts = getattr(manager, "incremental_streaming_output", False) and getattr(obj, "stream", False)
    async with aclosing(original(manager, obj, *args, **kwargs)) as outputs:
        async for output in outputs:
            if watched:
                for choice in output if isinstance(output, list) else [output]:
                    index = choice.get("index", 0) if isinstance(output, dict) else len(seen)
                    meta = choice["meta_info"]
                    if in_parts:  # an output tells the steps of its own tokens; else those of all so far
                        steps = seen[index][INFO_KEY] if index in seen else []
                        steps.extend(meta.get(INFO_KEY, ()))
                        meta = {**meta, INFO_KEY: steps}
                    seen[index] = meta
            yield output


def summary_of(manager: Any, obj: Any) -> dict[str, Any] | None:
    """Adds up what the outputs of a request said.

    Args:
        manager: the TokenizerManager.
        obj: the request as it went into `generate_request`.

    Returns:
        The object `lychee` of the answer; None where our backend does not run, or nothing came out.
    """
    engine, seen = Engine.of(manager), getattr(obj, SEEN, None)
    if engine is None or not seen:
        return None
    metas = list(seen.values())
    # choices of several prompts: budget and context are those of the longest
    prompt, answer = max(((_count(meta, "prompt"), _count(meta, "completion")) for meta in metas), key=sum)
    steps = [meta.get(INFO_KEY, ()) for meta in metas]
    return summarise(steps, engine.spec(obj, prompt), prompt + answer, Times.of(metas))


def _count(meta: dict[str, Any], of: str) -> int:
    return int(meta.get(f"{of}_tokens", 0))


def _with_summary(event: str, summary: dict[str, Any]) -> str:
    body = json.loads(event.removeprefix("data: "))
    return f"data: {json.dumps({**body, INFO_KEY: summary}, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _ends_a_choice(event: str) -> bool:
    """Whether an event may be the last before [DONE]: it finishes a choice, or carries none (usage)."""
    if '"finish_reason":"' not in event and '"choices":[]' not in event:
        return False
    body = json.loads(event.removeprefix("data: "))
    choices = body.get("choices")
    return isinstance(choices, list) and all(choice.get("finish_reason") for choice in choices)


async def decorate_stream(
    original: Callable[..., AsyncGenerator[str, None]], serving: Any, adapted: Any, *args: Any, **kwargs: Any
) -> AsyncGenerator[str, None]:
    """Stands around SGLang's SSE generators: the last chunk before [DONE] gets the summary.

    Only chunks that finish a choice are held back, and only until the next one shows whether they were the last.
    """
    held: str | None = None
    async with aclosing(original(serving, adapted, *args, **kwargs)) as events:
        async for event in events:
            if held is not None:
                summary = summary_of(serving.tokenizer_manager, adapted) if event == DONE else None
                yield _with_summary(held, summary) if summary else held
                held = None
            if _ends_a_choice(event):
                held = event
            else:
                yield event
    if held is not None:
        yield held


async def decorate_answer(original: Callable[..., Any], serving: Any, adapted: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands around SGLang's answers that are not streamed: adds the summary.

    The answer stays one of SGLang's class: to SGLang's other protocols on top of chats (`/v1/messages`), anything else
    is an error.
    """
    from pydantic import BaseModel

    answer = await original(serving, adapted, *args, **kwargs)
    summary = summary_of(serving.tokenizer_manager, adapted)
    if summary is None or not isinstance(answer, BaseModel) or not hasattr(answer, "choices"):
        return answer
    told = {**dict(answer), INFO_KEY: summary}
    return _with_field(type(answer)).model_construct(answer.model_fields_set | {INFO_KEY}, **told)


@functools.cache
def _with_field(answer: type[BaseModel]) -> type[BaseModel]:
    """Gives a class of answers one that has our object, too."""
    from pydantic import create_model

    return create_model(answer.__name__, __base__=answer, lychee=(dict[str, Any], ...))


def add_routes(server_args: Any, tokenizer_manager: Any, *args: Any, **kwargs: Any) -> None:
    """Runs before SGLang starts its HTTP server: adds `GET /lychee/info`."""
    from sglang.srt.entrypoints.http_server import app

    engine = Engine.of(tokenizer_manager)
    if engine is None:
        return

    async def info() -> dict[str, Any]:
        """What the attention backend lychee runs with."""
        return engine.info()

    app.add_api_route("/lychee/info", info, methods=["GET"])
