"""A pool too small for its requests: SGLang retracts some, and nobody's budget becomes another's."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from client import Client
from prompts import passage

from lychee_sgl.bench.near_ties import near_tie
from lychee_sgl.serve.solo import solo_engine

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine

TOKENS = 160
PROMPT = 120
BUDGETS = ["dense", 100, 60, "dense", 30, 90]
CORRECTIONS = [7, 0, 16, 0, 32, 0]
"""Run again what is decoded, after so many tokens: a retraction's prefill begins that anew."""
RIVAL = {
    "input_ids": [1, 2, 3],
    "sampling_params": {"max_new_tokens": 2, "custom_params": {"lychee_policy": "quest"}},
}
NEAR_TIE = 0.5
"""Logits; test_tokens.py measures how far stock is from itself, which is about this."""


def test_retracted_requests_keep_their_budgets(tmp_path: Path) -> None:
    # six requests end with 280 tokens each, 1,680 together; SGLang is told to expect nearly nothing of them
    arguments = ("--max-total-tokens", "1000", "--schedule-conservativeness", "0.01")
    with (
        solo_engine(tmp_path, engine_args=arguments, environ={"LYCHEE_DENSE_BELOW": "0"}) as address,
        closing(Client(address)) as engine,
    ):
        refused = engine.http.post("/generate", json=RIVAL)
        assert (refused.status_code, "LYCHEE_RIVAL_POLICIES=1" in refused.text) == (400, True)
        calls = [
            {"prompt": passage(PROMPT, seed=i), "budget": b, "tokens": TOKENS, "lychee": {"cache_correction": every}}
            for i, (b, every) in enumerate(zip(BUDGETS, CORRECTIONS, strict=True))
        ]
        alone = [engine.generate(**call) for call in calls if call["budget"] == "dense"]
        engine.flush()
        together = engine.together(calls)
        retracted = engine.metric("sglang:num_retracted_requests_total")
        engine.flush()
        assert engine.metric("sglang:num_used_tokens") == 0
    assert retracted > 0, "nothing was retracted: the test proves nothing"
    for call, answer in zip(calls, together, strict=True):
        budget = call["budget"]
        assert len(answer.tokens) == TOKENS
        # the first token comes out of the prefill, and so does one more after every retraction
        assert TOKENS - 1 - retracted <= len(answer.steps) <= TOKENS - 1
        bound = {step[3] for step in answer.steps if step[2] == 0}
        assert bound == {-1 if budget == "dense" else budget}
    dense = [answer for call, answer in zip(calls, together, strict=True) if call["budget"] == "dense"]
    ties = [near_tie(a, b, NEAR_TIE) for a, b in zip(alone, dense, strict=True)]
    assert all(tie is None or tie[0] for tie in ties), ties
