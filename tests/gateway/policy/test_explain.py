"""What a request would get, explained without running it."""

from __future__ import annotations

import pytest

from tests.gateway.policy.test_runtime import RULES, explain


def test_explained_step_by_step(with_policy, engine):
    gateway = with_policy(RULES)
    told = explain(gateway, {"messages": [], "stream": True}, tier="free", prompt_tokens=5000)
    assert told == {
        "budget": 300,
        "mode": "topk",
        "value": None,
        "reason": "tier",
        "rule": "streams",
        "tier": "free",
        "prompt_tokens": {"estimate": 5000, "low": 5000, "high": 5000},
        "steps": [
            {"step": "request", "says": "leaves it to the policy"},
            {"step": "rule", "says": "streams gives budget 400"},
            {"step": "bounds", "says": "the tier allows 1 to 300: 300 tokens"},
        ],
    }
    assert engine.bodies == []


def test_explained_without_a_policy(gateway):
    told = explain(gateway, {"prompt": "x" * 400})
    assert (told["budget"], told["reason"], told["prompt_tokens"]["estimate"]) == (1024, "default", 100)
    assert gateway.http.get("/v1/sparsity").json()["policy"] is None


def test_an_explained_recall_begins_nothing(gateway):
    told = explain(gateway, {"messages": [], "lychee": {"min_recall": 0.9}}, prompt_tokens=6000)
    assert told["reason"] == "min_recall"
    assert 2500 < told["budget"] < 3500
    assert gateway.http.get("/v1/sparsity").json()["recall"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "request"),
        ({"request": []}, "request"),
        ({"request": {"lychee": {"budget": 0}}}, "lychee.budget"),
        ({"request": {}, "route": "embeddings"}, "route"),
        ({"request": {}, "tier": "silver"}, "tier"),
        ({"request": {}, "tier": 1}, "tier"),
        ({"request": {}, "prompt_tokens": 0}, "prompt_tokens"),
        ({"request": {}, "prompt_tokens": 8193}, "prompt_tokens"),
        ({"request": {}, "prompt_tokens": True}, "prompt_tokens"),
        ({"request": {}, "budget": 1}, None),
    ],
)
def test_explain_refuses(gateway, body, param):
    reply = gateway.http.post("/v1/sparsity/explain", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_nothing_is_tokenised_to_explain_or_for_a_very_long_prompt(with_policy, engine):
    gateway = with_policy(RULES.replace("min: 1000", "min: 65000"))
    engine.token_count = 70_000
    near = {"messages": [{"role": "user", "content": "x" * 4 * 65_000}]}
    assert explain(gateway, near)["prompt_tokens"]["low"] < 65_000
    assert engine.tokenized == []
    gateway.chat(**near)
    assert len(engine.tokenized) == 1
    gateway.chat(messages=[{"role": "user", "content": "x" * (2**18 + 1)}])
    assert len(engine.tokenized) == 1
