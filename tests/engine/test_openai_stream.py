"""The summary goes into the last chunk before [DONE], and nothing but finishing chunks is ever held back."""

import json
from types import SimpleNamespace

import pytest

from lychee_sgl.backend import openai


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
