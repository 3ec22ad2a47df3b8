"""The policy at work: a gateway with a policy file in front of a scripted engine."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from lychee_server.keys import hash_key
from lychee_server.metrics import GatewayMetrics
from lychee_server.policy.curve import reach_of
from lychee_server.policy.file import PolicyError, load_policy
from lychee_server.policy.recall import RecallKeeper
from lychee_server.policy.runtime import BudgetPolicy
from lychee_server.policy.schema import RecallHold
from lychee_server.upstream import Upstream
from tests.gateway.policy.test_recall import recall_at
from tests.gateway.scripted_engine import (
    SUMMARY,
    Script,
    ScriptedEngine,
    ThreadedServer,
    chat_answer,
    chat_events,
    serving,
    wait_until,
)
from tests.gateway.test_curve import CURVE

EXAMPLE = Path(__file__).parents[3] / "deploy" / "policy.example.yaml"

RULES = """
version: 1
default: {budget: 700}
tiers:
  free: {bounds: {max: 300}}
rules:
- {name: streams, when: {streaming: true}, gives: {budget: 400}}
- {name: long, when: {prompt_tokens: {min: 1000}}, gives: {budget: 900}}
"""


def sent(engine) -> dict[str, Any]:
    """The budget that the engine was asked for last."""
    return {k: v for k, v in engine.bodies[-1].get("custom_params", {}).items() if k.startswith("lychee_")}


def explain(gateway, request: dict[str, Any], **more: Any) -> dict[str, Any]:
    reply = gateway.http.post("/v1/sparsity/explain", json={"request": request, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_example_is_a_policy():
    policy = load_policy(EXAMPLE)
    assert set(policy.tiers) == {"gold", "free"}
    assert policy.pressure is not None


def test_the_default_and_a_rule(with_policy, engine):
    gateway = with_policy(RULES)
    reply = gateway.chat()
    assert sent(engine) == {"lychee_budget": 700}
    assert reply.json()["lychee"]["reason"] == "default"
    assert "rule" not in reply.json()["lychee"]
    with gateway.http.stream("POST", "/v1/chat/completions", json={"messages": [{}], "stream": True}) as stream:
        assert sent(engine) == {"lychee_budget": 400}
        known = {k: v for k, v in stream.headers.items() if k.startswith("x-lychee")}
        last = stream.read().split(b"\n\n")[-3]
    assert known == {
        "x-lychee-budget": "400",
        "x-lychee-mode": "topk",
        "x-lychee-reason": "rule",
        "x-lychee-rule": "streams",
    }
    told = json.loads(last.removeprefix(b"data: "))["lychee"]
    assert (told["reason"], told["rule"]) == ("rule", "streams")
    assert gateway.total("lychee_policy_rule_answers_total", rule="streams") == 1
    assert gateway.total("lychee_policy_rule_answers_total", rule="long") == 0
    assert gateway.total("lychee_budget_decisions_total", reason="rule") == 1
    assert gateway.total("lychee_budget_decisions_total", reason="default") == 1


def test_a_request_that_names_its_budget_is_not_ruled(with_policy, engine):
    gateway = with_policy(RULES)
    reply = gateway.chat(stream=False, lychee={"budget": 64})
    assert sent(engine) == {"lychee_budget": 64}
    assert reply.headers["x-lychee-reason"] == "request"


@pytest.mark.parametrize(
    ("count", "budget", "asked"),
    [(1200, 900, 1), (400, 700, 1), (None, 700, 1)],
)
def test_near_a_border_the_engine_counts_the_prompt(with_policy, engine, count, budget, asked):
    """700 tokens are estimated, within a margin that includes 1000; one that cannot be counted stays estimated."""
    gateway = with_policy(RULES)
    engine.token_count = count
    message = {"role": "user", "content": "x" * 2780}
    gateway.chat(messages=[message], tools=[], lychee=None)
    assert sent(engine) == {"lychee_budget": budget}
    assert engine.tokenized == [{"messages": [message], "tools": []}]
    assert gateway.total("lychee_prompts_tokenized_total") == asked


@pytest.mark.parametrize("size", [400, 60_000])
def test_far_from_a_border_it_does_not(with_policy, engine, size):
    gateway = with_policy(RULES)
    gateway.chat(messages=[{"role": "user", "content": "x" * size}])
    assert sent(engine) == {"lychee_budget": 900 if size > 5000 else 700}
    assert engine.tokenized == []


def test_answers_teach_how_long_prompts_are(with_policy, engine):
    """The scripted engine's prompts have 1000 tokens: 2000 bytes are 2.01 a token, whatever was guessed at first."""
    gateway = with_policy(RULES)
    engine.token_count = 1000
    for _ in range(40):
        gateway.chat(messages=[{"role": "user", "content": "x" * 2000}])
    (learnt,) = gateway.http.get("/v1/sparsity").json()["prompt_lengths"]
    assert learnt["bytes_per_token"] == pytest.approx(2000 / 995, rel=0.03)
    assert learnt["answers"] == 40


def recalling(body: dict[str, Any]) -> dict[str, Any]:
    """An answer of an engine whose recall depends on the budget as it did when the shipped plan was measured."""
    budget = body["custom_params"]["lychee_budget"]
    recall = recall_at(reach_of(budget, 6000 + 20))
    summary = {**SUMMARY, "budget": budget, "recall": recall, "decode_steps": 40, "sparse_steps": 40}
    answer = chat_answer({**summary, "context_tokens": 6041})
    return {**answer, "usage": {"prompt_tokens": 6000, "completion_tokens": 41, "total_tokens": 6041}}


def test_a_recall_is_held_without_a_policy(gateway, engine):
    engine.script = Script(answer=recalling)
    budgets, recalls = [], []
    for _ in range(80):
        reply = gateway.chat(messages=[{"role": "user", "content": "x" * 24_000}], lychee={"min_recall": 0.95})
        told = reply.json()["lychee"]
        assert told["reason"] == "min_recall"
        budgets.append(told["budget"])
        recalls.append(told["recall"])
    assert budgets[0] > 3000
    assert min(recalls) >= 0.94
    assert all(0.95 <= recall <= 0.96 for recall in recalls[-10:])
    state = gateway.http.get("/v1/sparsity").json()
    (bucket,) = state["recall"]
    assert bucket["served"] == "tiny, built-in 00"
    assert (bucket["prompt_tokens"], bucket["audited_answers"]) == ("4096-8191", 80)
    (held,) = bucket["held"]
    assert held["min_recall"] == 0.95
    assert held["budget"] == pytest.approx(budgets[-1], rel=0.05)
    assert any(row["recall"] == pytest.approx(0.95, abs=0.02) for row in bucket["reached"])
    assert gateway.total("lychee_budget_decisions_total", reason="min_recall") == 80


def test_another_head_plan_begins_anew(gateway, engine, running):
    engine.script = Script(answer=recalling)
    body = {"messages": [{"role": "user", "content": "x" * 24_000}], "lychee": {"min_recall": 0.95}}
    budgets = [gateway.chat(**body).json()["lychee"]["budget"] for _ in range(20)]
    assert budgets[-1] < budgets[0] - 500
    running.server.kill()
    wait_until(lambda: not gateway.ready())
    engine.info = {**engine.info, "plan": {**engine.info["plan"], "sha256": "11"}}
    running.server.start()
    wait_until(gateway.ready)
    assert gateway.chat(**body).json()["lychee"]["budget"] > budgets[0] - 100


@pytest.mark.parametrize(
    "change",
    [
        {"recall": None},
        {"sparse_steps": 39},
        {"mode": "top_p"},
        {"budget": "dense", "mode": None},
        {"sparse_steps": 0, "decode_steps": 0},
    ],
)
def test_answers_that_say_nothing_of_recall(gateway, engine, change):
    engine.script = Script(answer=lambda body: {**recalling(body), "lychee": {**recalling(body)["lychee"], **change}})
    gateway.chat(lychee={"min_recall": 0.9})
    assert gateway.total("lychee_prompt_tokens_total") == 6000
    (bucket,) = [b for b in gateway.http.get("/v1/sparsity").json()["recall"] if b["held"]]
    assert bucket["audited_answers"] == 0


def test_a_time_per_token_needs_a_curve(gateway):
    reply = gateway.chat(lychee={"target_itl_ms": 20})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "no_speed_curve"
    assert reply.json()["error"]["param"] == "lychee.target_itl_ms"


@pytest.fixture
def curve_file(tmp_path):
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(CURVE))
    return path


def test_a_time_per_token(start_gateway, engine, curve_file):
    gateway = start_gateway(curve_file=curve_file)
    # 8,000 tokens: 512 take 20 ms and 2048 take 26 ms; 23 ms is halfway in the logarithm of the budget: 1024.
    gateway.chat(messages=[{"role": "user", "content": "x" * 31_980}], lychee={"target_itl_ms": 23})
    assert sent(engine)["lychee_budget"] == pytest.approx(1024, abs=2)
    gateway.chat(messages=[{"role": "user", "content": "x" * 31_980}], lychee={"target_itl_ms": 100})
    assert sent(engine) == {"lychee_budget": "dense"}


def test_the_curve_of_another_engine_is_no_curve(start_gateway, engine, curve_file):
    engine.info = {**engine.info, "model": "other"}
    gateway = start_gateway(curve_file=curve_file)
    assert gateway.chat(lychee={"target_itl_ms": 23}).status_code == 400


PRESSED = """
version: 1
default: {budget: 800}
bounds: {min: 200}
pressure: {queue: {low: 2, high: 10}, interval: 0.05, rise_seconds: 0.05, fall_seconds: 0.05}
"""


def load(waiting: int, usage: float) -> dict[str, Any]:
    return {"dp_rank": 0, "num_running_reqs": 4, "num_waiting_reqs": waiting, "token_usage": usage}


def test_budgets_shrink_under_load_and_come_back(with_policy, engine):
    gateway = with_policy(PRESSED)
    engine.loads = [load(50, 0.1)]
    wait_until(lambda: gateway.value("lychee_policy_pressure_ratio") == 1)
    reply = gateway.chat()
    assert sent(engine) == {"lychee_budget": 200}
    assert reply.json()["lychee"]["reason"] == "pressure"
    assert gateway.http.get("/v1/sparsity").json()["pressure"] == {"level": 1.0, "queue": 50, "kv_use": 0.1}
    # What a request fixed itself is left alone.
    gateway.chat(lychee={"budget": 700})
    assert sent(engine) == {"lychee_budget": 700}
    engine.loads = [load(0, 0.1)]
    wait_until(lambda: gateway.value("lychee_policy_pressure_ratio") == 0)
    gateway.chat()
    assert sent(engine) == {"lychee_budget": 800}


async def test_an_engine_that_does_not_tell_its_load_keeps_no_other_from_being_asked(tmp_path):
    class Asked(ScriptedEngine):
        def __init__(self, gate: threading.Event) -> None:
            super().__init__()
            self.gate, self.asked = gate, threading.Event()

        async def _loads(self, request):
            self.asked.set()
            await asyncio.to_thread(self.gate.wait)
            return await super()._loads(request)

    gate = threading.Event()
    silent, other = Asked(gate), Asked(gate)
    policy = tmp_path / "policy.yaml"
    policy.write_text(PRESSED)
    with serving(ThreadedServer(silent.app)) as first, serving(ThreadedServer(other.app)) as second:
        upstreams = [Upstream(server.url, 600, 600) for server in (first, second)]
        # both are ready at one time, which a monitor of their own would not promise
        engines = [
            SimpleNamespace(
                name=upstream.url,
                monitor=SimpleNamespace(ready=True),
                replicas=SimpleNamespace(direct=functools.partial(tuple, [upstream])),
            )
            for upstream in upstreams
        ]
        metrics, pool = GatewayMetrics(CollectorRegistry()), SimpleNamespace(engines=engines)
        budgets = BudgetPolicy(policy, engines=pool, metrics=metrics, waiting=lambda: 0, curve=None, timeout=600)
        watching = asyncio.create_task(budgets.watch())
        try:
            assert await asyncio.to_thread(silent.asked.wait, 60)
            assert await asyncio.to_thread(other.asked.wait, 60)  # while the first has not answered
        finally:
            gate.set()
            watching.cancel()
            await asyncio.wait([watching])
            for upstream in upstreams:
                await upstream.aclose()


def test_the_kv_pool_presses_too(with_policy, engine):
    gateway = with_policy(PRESSED)
    engine.loads = [load(0, 0.2), load(0, 0.99)]
    wait_until(lambda: gateway.value("lychee_policy_pressure_ratio") == 1)


def test_without_an_account_of_its_load_an_engine_does_not_press(with_policy, engine):
    gateway = with_policy(PRESSED)
    gateway.chat()
    assert sent(engine) == {"lychee_budget": 800}


def test_a_rule_with_a_time_per_token_needs_a_curve(with_policy):
    with pytest.raises(PolicyError, match="target_itl_ms needs a speed curve; the setting curve_file is not set"):
        with_policy("version: 1\ndefault: {target_itl_ms: 20}")


def test_the_tier_of_the_callers_key(with_policy, engine, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(f'- id: bob\n  tier: free\n  sha256: "{hash_key("a-key-of-bob-for-tests")}"\n')
    gateway = with_policy(RULES, keys_file=keys)
    gateway.http.headers["authorization"] = "Bearer a-key-of-bob-for-tests"
    reply = gateway.chat(lychee={"budget": 5000})
    assert sent(engine) == {"lychee_budget": 300}
    assert (reply.headers["x-lychee-reason"], reply.headers["x-lychee-tier"]) == ("tier", "free")
    assert reply.json()["lychee"]["tier"] == "free"
    # Asked about without a name, it is the caller's own.
    assert explain(gateway, {"messages": []})["tier"] == "free"
    assert explain(gateway, {"messages": []}, tier=None)["tier"] is None


def test_state_of_a_gateway_with_a_policy(with_policy):
    state = with_policy(RULES).http.get("/v1/sparsity").json()
    assert state["policy"]["rules"][0] == {"name": "streams", "when": {"streaming": True}, "gives": {"budget": 400}}
    assert state["plan"]["name"] == "built-in"
    assert state["defaults"]["budget"] == 1024


def test_an_engine_without_the_plug_in_is_asked_as_before(with_policy, engine):
    engine.info = None
    engine.script = Script(answer=chat_answer(None), events=list(chat_events(None)))
    gateway = with_policy(RULES)
    gateway.chat()
    assert "custom_params" not in engine.bodies[-1]
    assert "without the lychee plug-in" in explain(gateway, {"messages": []})["steps"][0]["says"]
    assert gateway.http.get("/v1/sparsity").json()["plan"] is None


def test_an_empty_text_with_a_recall_to_hold(with_policy, engine):
    gateway = with_policy(RULES.replace("streaming: true", "prompt_tokens: {min: 2}"))
    engine.token_count = 0
    body = {"prompt": [""], "lychee": {"min_recall": 0.9}}
    assert gateway.http.post("/v1/completions", json=body).status_code == 200
    assert RecallKeeper(RecallHold()).hold("tiny", 0, 0.9).budget == RecallHold().floor


def test_a_load_that_cannot_be_read_is_said_once(with_policy, engine, caplog):
    gateway = with_policy(PRESSED)
    wait_until(lambda: "load cannot be read" in caplog.text)
    engine.loads = [load(100, 0.0)]
    wait_until(lambda: gateway.value("lychee_policy_pressure_ratio") > 0)
    assert caplog.text.count("load cannot be read") == 1
