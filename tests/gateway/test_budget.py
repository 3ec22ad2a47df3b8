"""The request field `lychee`: what is accepted, what is refused and in which words, and the reason afterwards."""

from __future__ import annotations

import pytest

from lychee_server.budget import (
    answer_of,
    headers_after,
    headers_before,
    merge_custom_params,
    parse_lychee,
)
from lychee_server.errors import InvalidRequest
from lychee_server.policy.decide import Decision, request_reason
from lychee_server.schemas import EngineSummary, LycheeRequest, PlanDefaults
from tests.gateway.scripted_engine import SUMMARY


def decided(asked: LycheeRequest) -> Decision:
    """A request on which no policy has a say."""
    return Decision(sent=asked, expected=asked, reason=request_reason(asked))


def parse(raw):
    return parse_lychee(raw, context_window=8192)


@pytest.mark.parametrize(
    ("raw", "params"),
    [
        (None, None),
        ({}, None),
        ({"budget": None, "mode": None, "value": None}, None),
        ({"budget": 1}, {"lychee_budget": 1}),
        ({"budget": 8192}, {"lychee_budget": 8192}),
        ({"budget": "dense"}, {"lychee_budget": "dense"}),
        ({"budget": "auto", "mode": "topk"}, {"lychee_budget": "auto", "lychee_mode": "topk"}),
        ({"mode": "ratio", "value": 1}, {"lychee_mode": "ratio", "lychee_value": 1.0}),
        ({"mode": "top_p", "value": 1.0}, {"lychee_mode": "top_p", "lychee_value": 1.0}),
        (
            {"mode": "threshold", "value": 1e-9, "budget": 64},
            {"lychee_budget": 64, "lychee_mode": "threshold", "lychee_value": 1e-9},
        ),
        ({"policy": "quest", "budget": 64}, {"lychee_budget": 64, "lychee_policy": "quest"}),
        ({"policy": "random", "seed": 0}, {"lychee_policy": "random", "lychee_seed": 0}),
        ({"cache_correction": 0}, {"lychee_cache_correction": 0}),
        ({"cache_correction": 1024, "budget": "dense"}, {"lychee_cache_correction": 1024, "lychee_budget": "dense"}),
    ],
)
def test_accepted(raw, params):
    assert merge_custom_params(None, parse(raw)) == params


BUDGETS = 'an integer from 1 to 8192 (the context window), "dense", "auto"'
SHARE = "a number above 0 and up to 1"
KEYS = (
    "budget, mode, value, min_recall, target_itl_ms, policy, seed, "
    "cache_correction, memory, chunk, working_memory, ratio"
)


@pytest.mark.parametrize(
    ("raw", "param", "message"),
    [
        ({"budget": 0}, "lychee.budget", f"lychee.budget is 0; allowed: {BUDGETS}"),
        ({"budget": -5}, "lychee.budget", f"lychee.budget is -5; allowed: {BUDGETS}"),
        ({"budget": 1e9}, "lychee.budget", f"lychee.budget is 1000000000.0; allowed: {BUDGETS}"),
        ({"budget": 1.5}, "lychee.budget", f"lychee.budget is 1.5; allowed: {BUDGETS}"),
        ({"budget": 2.0}, "lychee.budget", f"lychee.budget is 2.0; allowed: {BUDGETS}"),
        ({"budget": True}, "lychee.budget", f"lychee.budget is true; allowed: {BUDGETS}"),
        ({"budget": "much"}, "lychee.budget", f'lychee.budget is "much"; allowed: {BUDGETS}'),
        ({"budget": "64"}, "lychee.budget", f'lychee.budget is "64"; allowed: {BUDGETS}'),
        ({"budget": [64]}, "lychee.budget", f"lychee.budget is [64]; allowed: {BUDGETS}"),
        ({"budget": 8193}, "lychee.budget", f"lychee.budget is 8193; allowed: {BUDGETS}"),
        (
            {"mode": "top-k"},
            "lychee.mode",
            'lychee.mode is "top-k"; allowed: "topk", "ratio", "threshold", "top_p"',
        ),
        ({"mode": []}, "lychee.mode", 'lychee.mode is []; allowed: "topk", "ratio", "threshold", "top_p"'),
        (
            {"mode": "topk", "budget": "dense"},
            "lychee.mode",
            'lychee.mode is "topk"; allowed: no mode with the budget "dense", which reads everything',
        ),
        (
            {"mode": "ratio"},
            "lychee.value",
            f'lychee.value is null; allowed: {SHARE} (mode "ratio" needs it)',
        ),
        (
            {"mode": "ratio", "value": 0},
            "lychee.value",
            f'lychee.value is 0; allowed: {SHARE} (mode "ratio")',
        ),
        (
            {"mode": "ratio", "value": 1.01},
            "lychee.value",
            f'lychee.value is 1.01; allowed: {SHARE} (mode "ratio")',
        ),
        (
            {"mode": "top_p", "value": float("nan")},
            "lychee.value",
            f'lychee.value is NaN; allowed: {SHARE} (mode "top_p")',
        ),
        (
            {"mode": "top_p", "value": True},
            "lychee.value",
            f'lychee.value is true; allowed: {SHARE} (mode "top_p")',
        ),
        (
            {"mode": "threshold", "value": 1},
            "lychee.value",
            'lychee.value is 1; allowed: a number above 0 and below 1 (mode "threshold")',
        ),
        (
            {"mode": "topk", "value": 0.5},
            "lychee.value",
            'lychee.value is 0.5; allowed: no value with the mode "topk"',
        ),
        (
            {"value": 0.5},
            "lychee.value",
            'lychee.value is 0.5; allowed: no value with the mode "topk", which is in force',
        ),
        (
            {"value": 0.5, "budget": "dense"},
            "lychee.value",
            'lychee.value is 0.5; allowed: no value with the budget "dense", which reads everything',
        ),
        (
            {"budgte": 64},
            "lychee.budgte",
            f"lychee.budgte is not known; allowed keys are {KEYS}",
        ),
        (
            {"min_recall": 0.49},
            "lychee.min_recall",
            "lychee.min_recall is 0.49; allowed: a number from 0.5 to 0.999",
        ),
        (
            {"min_recall": True},
            "lychee.min_recall",
            "lychee.min_recall is true; allowed: a number from 0.5 to 0.999",
        ),
        (
            {"target_itl_ms": "20"},
            "lychee.target_itl_ms",
            'lychee.target_itl_ms is "20"; allowed: a number from 0.001 to 60000',
        ),
        (
            {"min_recall": 0.97, "budget": 512},
            "lychee.min_recall",
            "lychee.min_recall is 0.97; allowed: nothing else beside it; given: budget, min_recall",
        ),
        (
            {"target_itl_ms": 20, "min_recall": 0.9},
            "lychee.min_recall",
            "lychee.min_recall is 0.9; allowed: nothing else beside it; given: min_recall, target_itl_ms",
        ),
        (
            {"policy": "best"},
            "lychee.policy",
            'lychee.policy is "best"; allowed: "plan", "block", "window", "random", "quest", "oracle"',
        ),
        (
            {"cache_correction": 1025},
            "lychee.cache_correction",
            "lychee.cache_correction is 1025; allowed: an integer from 0 to 1024",
        ),
        (
            {"policy": "quest", "seed": 1},
            "lychee.seed",
            'lychee.seed is 1; allowed: no seed without the policy "random"',
        ),
        (
            {"policy": "random", "seed": 1.0},
            "lychee.seed",
            "lychee.seed is 1.0; allowed: an integer from 0 to 2147483647",
        ),
        (64, "lychee", f"lychee is 64; allowed: an object with the keys {KEYS}"),
        ([], "lychee", f"lychee is []; allowed: an object with the keys {KEYS}"),
        (False, "lychee", f"lychee is false; allowed: an object with the keys {KEYS}"),
    ],
)
def test_refused(raw, param, message):
    with pytest.raises(InvalidRequest) as refused:
        parse(raw)
    assert (refused.value.message, refused.value.param) == (message, param)


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(InvalidRequest) as refused:
        parse({"budget": "x" * 10_000})
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("raw", "param", "words"),
    [
        ({"lychee_budget": 64}, "custom_params.lychee_budget", 'use the field "lychee"'),
        ({"lychee_anything": None}, "custom_params.lychee_anything", 'use the field "lychee"'),
        ({"mine": {"nested": 1}}, "custom_params.mine", "a string, a number, a boolean or null"),
        ({"mine": [1]}, "custom_params.mine", "a string, a number, a boolean or null"),
        ([1], "custom_params", "an object of strings"),
        ("x", "custom_params", "an object of strings"),
    ],
)
def test_custom_params_refused(raw, param, words):
    with pytest.raises(InvalidRequest, match=words) as refused:
        merge_custom_params(raw, LycheeRequest())
    assert refused.value.param == param


def test_custom_params_of_the_caller_stay_theirs():
    theirs = {"mine": 1}
    merged = merge_custom_params(theirs, LycheeRequest(budget=64))
    assert merged == {"mine": 1, "lychee_budget": 64}
    assert theirs == {"mine": 1}


ASKED = {
    "nothing": LycheeRequest(),
    "number": LycheeRequest(budget=512),
    "mode": LycheeRequest(mode="ratio", value=0.5),
    "dense": LycheeRequest(budget="dense"),
    "auto": LycheeRequest(budget="auto"),
    "auto_with_mode": LycheeRequest(budget="auto", mode="top_p", value=0.9),
}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("nothing", "default"),
        ("number", "request"),
        ("mode", "request"),
        ("dense", "request"),
        ("auto", "auto"),
        ("auto_with_mode", "auto"),
    ],
)
def test_reason_without_fallback(asked, reason):
    assert request_reason(ASKED[asked]) == reason
    assert answer_of(decided(ASKED[asked]), EngineSummary(**SUMMARY)).reason == reason


@pytest.mark.parametrize("asked", ["nothing", "number", "mode", "auto"])
@pytest.mark.parametrize(
    ("changes", "dense_below"),
    [
        ({"sparse_steps": 0, "dense_fallback": "dense_below"}, True),
        # Some steps ran sparse: the budget was really in force.
        ({"sparse_steps": 1, "dense_fallback": "dense_below"}, False),
        ({"sparse_steps": 0, "dense_fallback": "budget_covers_context"}, False),
        # The plan's default is dense: no sparse budget was in force.
        ({"sparse_steps": 0, "dense_fallback": None, "budget": "dense"}, False),
        # One token: nothing was decoded, so nothing fell back.
        ({"sparse_steps": 0, "decode_steps": 0, "dense_fallback": None}, False),
    ],
)
def test_reason_dense_below(asked, changes, dense_below):
    answer = answer_of(decided(ASKED[asked]), EngineSummary(**{**SUMMARY, **changes}))
    assert answer.reason == ("dense_below" if dense_below else request_reason(ASKED[asked]))


def test_headers_leave_out_what_there_is_not():
    summary = EngineSummary(**{**SUMMARY, "budget": None, "mode": "ratio", "recall": None})
    assert headers_after(answer_of(decided(ASKED["mode"]), summary)) == {
        "x-lychee-mode": "ratio",
        "x-lychee-reason": "request",
        "x-lychee-attended-fraction": "0.6",
        "x-lychee-context-tokens": "1004",
    }


@pytest.mark.parametrize(
    ("asked", "budget", "mode"),
    [
        ("nothing", None, "ratio"),
        ("number", "512", "topk"),
        ("mode", None, "ratio"),
        ("topk", "auto", "topk"),
        ("dense", "dense", None),
        ("auto_with_mode", "auto", "top_p"),
    ],
)
def test_headers_of_a_stream_when_the_plans_default_is_a_ratio(asked, budget, mode):
    """Only a request that asks for nothing gets the plan's mode; topk without a number is then automatic."""
    request = LycheeRequest(mode="topk") if asked == "topk" else ASKED[asked]
    headers = headers_before(decided(request), PlanDefaults(budget=None, mode="ratio"))
    assert (headers.get("x-lychee-budget"), headers.get("x-lychee-mode")) == (budget, mode)
