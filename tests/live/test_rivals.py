"""Rival policies in a real engine: each reads what its definition says, alone and beside others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prompts import passage

from lychee_sgl.bench.near_ties import first_difference, near_tie

if TYPE_CHECKING:
    from client import Answer, Client

pytestmark = pytest.mark.engine

LAYERS, HEADS = 30, 3
PROMPT, TOKENS, BUDGET = 600, 12, 400
NEAR_TIE = 0.5


def expected(policy: str, retrieval: int) -> int:
    """Adds up what an answer reads: the prefill gives its first token, eleven decode steps the others."""
    total = 0
    for n in range(PROMPT + 1, PROMPT + TOKENS):
        match policy:
            case "quest":
                total += HEADS * (2 * n + (LAYERS - 2) * (BUDGET + -(-n // 16)))
            case "plan" | "block":
                total += retrieval * n + (LAYERS * HEADS - retrieval) * BUDGET
            case _:
                total += LAYERS * HEADS * BUDGET
    return total


def call(policy: str, seed: int | None = None) -> dict[str, Any]:
    lychee = {"policy": policy, "seed": seed}
    return {"prompt": passage(PROMPT, seed=41), "budget": BUDGET, "tokens": TOKENS, "lychee": lychee}


def test_every_policy_reads_what_its_definition_says(lychee: Client) -> None:
    policies = lychee.http.get("/lychee/info").json()["policies"]
    retrieval = lychee.http.get("/lychee/info").json()["plan"]["retrieval_heads"]
    assert policies == ["plan", "block", "window", "random", "quest", "oracle"]
    calls = [call(policy) for policy in policies] + [call("random", 1), {**call("plan"), "budget": "dense"}]
    alone = [lychee.generate(**each) for each in calls]
    together = lychee.together(calls)
    for policy, one, other in zip(policies, alone, together, strict=False):
        for answer in (one, other):
            assert sum(step[0] for step in answer.steps) == expected(policy, retrieval), policy
            assert len(answer.steps) == TOKENS - 1
    ties = [near_tie(one, other, NEAR_TIE) for one, other in zip(alone, together, strict=True)]
    assert all(tie is None or tie[0] for tie in ties), ties
    check_recall(dict(zip([*policies, "random 1"], alone, strict=False)))


def check_recall(answers: dict[str, Answer]) -> None:
    """The oracle's sets hold the most, random ones the least; two seeds draw differently, one seed the same."""
    recall = {name: [step[5] for step in answer.steps if step[5] is not None] for name, answer in answers.items()}
    # at the first step all have seen the same context
    first = {name: values[0] for name, values in recall.items()}
    assert max(first, key=first.__getitem__) == "oracle", first
    assert first["random"] != first["random 1"]
    assert first["random"] < first["oracle"]
    assert all(0 < value <= 1 + 1e-9 for value in first.values())


def test_a_seed_repeats_itself(lychee: Client) -> None:
    one, other = (lychee.generate(**call("random", 5)) for _ in range(2))
    assert first_difference(one, other) is None
    assert [step[5] for step in one.steps] == [step[5] for step in other.steps]
