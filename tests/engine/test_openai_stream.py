"""The summary goes into the last chunk before [DONE], and nothing but finishing chunks is ever held back."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.backend import openai
from lychee_sgl.backend.plans import ChosenPlan
from lychee_sgl.config import EngineConfig
from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.plan import ModelShape

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


def event(text: str | None = None, finish: str | None = None, **extra: object) -> str:
    choices = (
        [] if text is None and finish is None else [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]
    )
    return "data: " + json.dumps({"id": "x", "choices": choices, **extra}, separators=(",", ":")) + "\n\n"


class Events:
    """An engine's stream that notes how far it has been read."""

    def __init__(self, *events: str) -> None:
        self.events, self.read, self.closed = events, 0, False

    async def __call__(self, serving, adapted):
        try:
            for item in self.events:
                self.read += 1
                yield item
        finally:
            self.closed = True


@pytest.fixture
def _summary(monkeypatch):
    monkeypatch.setattr(openai, "summary_of", lambda manager, obj: {"budget": obj})


async def collect(events: Events) -> list[str]:
    return [e async for e in openai.decorate_stream(events, SimpleNamespace(tokenizer_manager=None), 512)]


@pytest.mark.usefixtures("_summary")
async def test_the_finishing_chunk_carries_the_summary() -> None:
    events = [event("a"), event("b"), event("", "stop"), openai.DONE]
    got = await collect(Events(*events))
    assert got[:2] == events[:2]
    assert json.loads(got[2].removeprefix("data: ")) == json.loads(events[2][6:]) | {"lychee": {"budget": 512}}
    assert got[3] == openai.DONE


@pytest.mark.usefixtures("_summary")
async def test_with_usage_the_last_chunk_is_the_usage() -> None:
    events = [event("a"), event("", "stop"), event(usage={"total_tokens": 3}), openai.DONE]
    got = await collect(Events(*events))
    assert got[:2] == events[:2]
    assert "lychee" in got[2]
    assert len(got) == 4


@pytest.mark.usefixtures("_summary")
async def test_text_is_passed_on_before_the_next_is_read() -> None:
    events = Events(event("a"), event('"finish_reason":"stop"'), event("", "stop"), openai.DONE)
    stream = openai.decorate_stream(events, SimpleNamespace(tokenizer_manager=None), 512)
    assert await anext(stream) == events.events[0]
    assert events.read == 1
    assert await anext(stream) == events.events[1]
    assert events.read == 2
    await stream.aclose()
    assert events.closed


@pytest.mark.usefixtures("_summary")
async def test_a_stream_that_breaks_off_loses_nothing() -> None:
    events = [event("a"), event("", "length")]
    assert await collect(Events(*events)) == events


async def test_a_foreign_engine_gets_no_summary(monkeypatch) -> None:
    monkeypatch.setattr(openai, "summary_of", lambda manager, obj: None)
    events = [event("a"), event("", "stop"), openai.DONE]
    assert await collect(Events(*events)) == events


class Manager:
    """A TokenizerManager with our backend, and outputs as SGLang's has them."""

    def __init__(self, outputs: list[Any], *, in_parts: bool = False) -> None:
        self.outputs, self.incremental_streaming_output = outputs, in_parts
        plan = heuristic_plan(ModelShape("m", "LlamaForCausalLM", 2, 4, 2, 64))
        self.lychee = openai.Engine(
            chosen=ChosenPlan(plan=plan, heuristic=True),
            config=EngineConfig(),
            context_window=4096,
            device="cpu",
            model="m",
        )

    async def generate(self, manager: object, obj: object) -> AsyncGenerator[Any, None]:
        for output in self.outputs:
            yield output

    async def summary(self, obj: SimpleNamespace) -> dict[str, Any] | None:
        async for _ in openai.watch(self.generate, self, obj):
            pass
        return openai.summary_of(self, obj)


def output(index: int, tokens: int, steps: list[Any]) -> dict[str, Any]:
    return {"index": index, "meta_info": {"prompt_tokens": 10, "completion_tokens": tokens, "lychee": steps}}


@pytest.mark.parametrize("in_parts", [False, True], ids=["all so far", "--incremental-streaming-output"])
async def test_all_steps_count_however_sglang_streams_them(in_parts: bool) -> None:
    """Of two choices, three tokens each; the first comes out of the prefill."""
    steps = [None, (6, 10, 0, 5, 11, 0.5, 2), (7, 12, 0, 5, 12, None, 2)]
    told = [
        output(index, count, steps[count - 1 : count] if in_parts else steps[:count])
        for count in (1, 2, 3)
        for index in (0, 1)
    ]
    obj = SimpleNamespace(sampling_params={"custom_params": {"lychee_budget": 5}}, stream=True)
    summary = await Manager(told, in_parts=in_parts).summary(obj)
    assert summary is not None
    assert (summary["decode_steps"], summary["sparse_steps"], summary["recall_steps"]) == (4, 4, 2)
    assert (summary["attended_tokens"], summary["dense_tokens"], summary["recall"]) == (26, 44, 0.5)


async def test_every_prompts_own_parameters_are_checked() -> None:
    """SGLang's own /generate takes a list of them; what is not checked here runs with the plan's defaults."""
    good, bad = {"custom_params": {"lychee_budget": 5}}, {"custom_params": {"lychee_budget": -5}}
    with pytest.raises(ValueError, match="lychee_budget is -5"):
        await Manager([]).summary(SimpleNamespace(sampling_params=[good, bad], stream=False))
    assert await Manager([]).summary(SimpleNamespace(sampling_params=[good, {}], stream=False)) is None


@pytest.mark.parametrize("longest_first", [False, True])
async def test_of_several_prompts_budget_and_context_are_the_longests(longest_first: bool) -> None:
    """The plan's `auto` gives an eighth of a prompt; /v1/completions takes a list of them."""
    metas = [
        {"meta_info": {"prompt_tokens": 10, "completion_tokens": 9}},
        {"meta_info": {"prompt_tokens": 8001, "completion_tokens": 2}},
    ]
    obj = SimpleNamespace(sampling_params={"custom_params": {"lychee_budget": "auto"}}, stream=False)
    summary = await Manager([metas[::-1] if longest_first else metas]).summary(obj)
    assert summary is not None
    assert (summary["context_tokens"], summary["budget"]) == (8003, 1001)
