"""What a gate is trained on is what the engine says, read from outside."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from lychee_sgl.memory.chunks import cut
from lychee_sgl.memory.gate_features import features
from lychee_sgl.memory.http_model import HttpModel
from lychee_sgl.memory.loop import Report
from lychee_sgl.memory.settings import ReadSettings
from lychee_sgl.memory.step import Asker

if TYPE_CHECKING:
    from client import Client

pytestmark = pytest.mark.engine

FILLER = " ".join(f"On day {day} nothing of interest was said, and nobody was there to hear it." for day in range(12))
QUESTION = "Who keeps the key of the Oslo office?"


def test_a_prompt_is_that_of_a_chat_and_a_fact_makes_its_question_likelier(lychee: Client) -> None:
    messages = [{"role": "system", "content": "Be brief ."}, {"role": "user", "content": f"  {QUESTION}\n"}]
    with closing(HttpModel(lychee.address)) as model:
        rendered = model.render(messages)
        assert messages[1]["content"] in rendered
        body = {"model": model.name, "messages": messages, "max_tokens": 1}
        usage = lychee.http.post("/v1/chat/completions", json=body).json()["usage"]
        assert len(model.encode([rendered])[0]) == usage["prompt_tokens"]
        asker = Asker(model, None, ReadSettings(), QUESTION, Report())
        found = []
        for fact in ("The key of the Oslo office is kept by Anna Berg.", "The kettle was sold for 41 crowns."):
            (block,) = cut(f"{FILLER}\n\n{fact}\n\n{FILLER}", 2000, model.encode)
            evidence = asyncio.run(asker.evidence(block, "", needs_gain=True))
            assert len(evidence.gained) == len(evidence.alone) == asker.question_tokens
            found.append(features(evidence))
        # 0.4 to 0.9 nats without the fact, 1.9 to 2.5 with it, where this was looked at first
        assert found[0]["gain_mean"] > found[1]["gain_mean"] + 0.5
        # the block's KV is there for whoever asks next
        assert asker.report.cached_tokens > 0
