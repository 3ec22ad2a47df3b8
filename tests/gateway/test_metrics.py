"""The numbers add up. Expected values follow from the scripted answers by hand."""

from __future__ import annotations

import json

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from lychee_server.body import Completion
from lychee_server.metrics import GatewayMetrics
from lychee_server.policy.decide import Decision
from lychee_server.policy.lengths import PromptText
from lychee_server.schemas import EngineSummary, LycheeRequest, PlanInfo
from lychee_server.tally import AnswerTally
from tests.gateway.scripted_engine import DONE, SUMMARY, Script, chat_answer, chat_events, chunk

ROUTE = "/v1/chat/completions"


def tally(registry: CollectorRegistry, choices: int = 1) -> AnswerTally:
    nothing = LycheeRequest()
    completion = Completion(
        body=b"",
        decision=Decision(sent=nothing, expected=nothing, reason="default"),
        text=PromptText(size=0),
        stream=True,
        rids=("r",),
        choices=choices,
    )
    return AnswerTally(completion, GatewayMetrics(registry), started=0.0)


def test_three_answers_add_up(gateway, engine):
    gateway.chat(lychee={"budget": 512})
    gateway.chat(stream=True, lychee={"budget": "auto"})
    dense = {
        **SUMMARY,
        "budget": 2048,
        "context_tokens": 900,
        "attended_tokens": 500,
        "dense_tokens": 500,
        "decode_steps": 3,
        "sparse_steps": 0,
        "attended_fraction": 1.0,
        "recall": None,
        "dense_fallback": "dense_below",
        "queue_seconds": None,
    }
    engine.script = Script(answer=chat_answer(dense))
    gateway.chat()
    value = gateway.total
    assert value("lychee_requests_total", route=ROUTE, status="200") == 3
    assert value("lychee_request_latency_seconds_count") == 3
    assert value("lychee_prompt_tokens_total") == 3 * 1000
    assert value("lychee_generation_tokens_total") == 3 * 4
    assert value("lychee_attended_kv_entries_total") == 600 + 600 + 500
    assert value("lychee_dense_equivalent_kv_entries_total") == 1000 + 1000 + 500
    assert value("lychee_effective_budget_tokens_sum") == 512 + 512 + 2048
    assert value("lychee_effective_budget_tokens_bucket", le="512.0") == 2
    # Contexts of 1004 and 900 tokens
    assert value("lychee_recall_ratio_count", context="0-1k") == 2
    assert value("lychee_recall_ratio_sum", context="0-1k") == pytest.approx(0.97 * 2)
    assert value("lychee_recall_ratio_bucket", context="0-1k", le="0.96") == 0
    assert value("lychee_recall_ratio_bucket", context="0-1k", le="0.97") == 2
    assert value("lychee_attended_fraction_ratio_sum", context="0-1k") == pytest.approx(0.6 + 0.6 + 1)
    assert value("lychee_decode_steps_total", decoding="sparse") == 3 + 3
    assert value("lychee_decode_steps_total", decoding="dense") == 3
    # No curve: nothing to hold them against
    assert value("lychee_speedup_uncounted_total", reason="no_curve") == 3
    assert value("lychee_queue_time_seconds_count") == 2
    assert value("lychee_dense_fallbacks_total", reason="dense_below") == 1
    for reason in ("request", "auto", "dense_below"):
        assert value("lychee_budget_decisions_total", reason=reason) == 1
    assert value("lychee_time_to_first_token_seconds_count") == 1
    # Four pieces of text: three gaps. The role chunk before and the finish chunk behind carry no token.
    assert value("lychee_inter_token_latency_seconds_count") == 3
    assert value("lychee_answers_without_summary_total") == 0


def test_requests_by_route_and_status(gateway):
    gateway.chat()
    gateway.chat(lychee={"budget": 0})
    gateway.http.post("/v1/completions", json={})
    gateway.http.get("/v1/models")
    gateway.http.get("/v1/models/tiny")
    gateway.http.get("/v1/models/none")
    gateway.http.get("/a/path/of/the/users")
    gateway.http.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(gateway.http.get("/metrics").text)}
    counted = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["lychee_requests"].samples
        if sample.name == "lychee_requests_total"
    }
    assert counted == {
        (ROUTE, "200"): 1,
        (ROUTE, "400"): 1,
        ("/v1/completions", "400"): 1,
        ("/v1/models", "200"): 2,
        ("/v1/models", "404"): 1,
        ("other", "404"): 1,
    }


def test_plan_and_engine(gateway):
    assert gateway.of_engine("lychee_engine_up") == 1
    plan = {"name": "built-in", "method": "heuristic", "heuristic": "true"}
    assert gateway.total("lychee_plan_info", engine=gateway.engine, **plan) == 1


def test_only_the_current_plan_is_shown():
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    metrics.engine_ready("e:1", PlanInfo(name="a", method="m", heuristic=True))
    metrics.engine_ready("e:1", PlanInfo(name="b", method="m", heuristic=False))
    (family,) = [family for family in registry.collect() if family.name == "lychee_plan_info"]
    assert [sample.labels for sample in family.samples] == [
        {"engine": "e:1", "name": "b", "method": "m", "heuristic": "false"}
    ]


def test_a_reason_of_the_engine_cannot_add_labels():
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    for reason in ("budget_covers_context", "workspace", "new", "newer"):
        metrics.summary(EngineSummary(**{**SUMMARY, "dense_fallback": reason}), "default")
    value = registry.get_sample_value
    assert value("lychee_dense_fallbacks_total", {"reason": "budget_covers_context"}) == 1
    assert value("lychee_dense_fallbacks_total", {"reason": "workspace"}) == 1
    assert value("lychee_dense_fallbacks_total", {"reason": "other"}) == 2


def test_budgets_without_a_number_are_not_observed():
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    for budget in ("dense", None):
        metrics.summary(EngineSummary(**{**SUMMARY, "budget": budget}), "request")
    assert registry.get_sample_value("lychee_effective_budget_tokens_count") == 0


def test_tokens_of_several_choices_without_usage():
    """The summary adds up the choices' steps; how long the prompts were cannot be told from it."""
    registry = CollectorRegistry()
    answer = tally(registry, choices=2)
    for event in chat_events({**SUMMARY, "decode_steps": 6, "context_tokens": 1004}):
        answer.event(event)
    answer.finish()
    assert registry.get_sample_value("lychee_generation_tokens_total") == 8
    assert registry.get_sample_value("lychee_prompt_tokens_total") == 0


def test_a_running_usage_count_is_not_the_total():
    registry = CollectorRegistry()
    answer = tally(registry)
    answer.event(chunk({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1}))
    answer.event(b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}}\n\n')
    answer.event(DONE)
    answer.finish()
    assert registry.get_sample_value("lychee_prompt_tokens_total") == 5
    assert registry.get_sample_value("lychee_generation_tokens_total") == 9


def test_gaps_are_between_tokens_of_the_same_choice():
    registry = CollectorRegistry()
    answer = tally(registry, choices=2)
    for index in (0, 1, 0, 1, 1):
        body = {"choices": [{"index": index, "text": "a"}]}
        answer.event(b"data: " + json.dumps(body).encode() + b"\n\n")
    assert registry.get_sample_value("lychee_inter_token_latency_seconds_count") == 3
