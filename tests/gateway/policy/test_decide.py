"""From a request and a policy to a budget, by hand."""

from __future__ import annotations

import pytest

from lychee_server.policy.decide import decide, depends_on_length
from lychee_server.policy.file import parse_policy
from lychee_server.policy.lengths import Length
from lychee_server.policy.schema import Bounds, Outcome, Policy, Pressure, Rule, When
from lychee_server.schemas import LycheeRequest, PlanAuto, PlanDefaults
from tests.gateway.policy.deciding import conditions, question

POLICY = parse_policy(
    """
version: 1
default: {budget: 3000}
bounds: {max: 6000}
tiers:
  gold: {gives: {budget: 5000}, bounds: {min: 600}}
  free: {bounds: {min: 100, max: 700}}
rules:
- {name: coder, when: {model: "*-coder"}, gives: {budget: dense}}
- {name: effort, when: {reasoning_effort: [high, xhigh], streaming: true}, gives: {budget: 1500}}
- {name: text, when: {route: completions}, gives: {ratio: 0.25, max: 2500}}
- {name: long, when: {prompt_tokens: {min: 20000}}, gives: {range: {min: 800, max: 4000, share: 0.1}}}
- {name: medium, when: {prompt_tokens: {min: 9000, max: 19999}}, gives: {range: {min: 800, max: 4000}}}
pressure: {floor: 200}
""",
    "p",
)


@pytest.mark.parametrize(
    ("changes", "sent", "reason", "rule"),
    [
        # The request, whatever tier and rules say.
        ({"asked": {"budget": 5500}, "model": "x-coder"}, {"budget": 5500}, "request", None),
        ({"asked": {"budget": "dense"}}, {"budget": 6000}, "tier", None),
        ({"asked": {"budget": "dense"}, "tier": "gold"}, {"budget": "dense"}, "request", None),
        ({"asked": {"mode": "top_p", "value": 0.9}, "tier": "gold"}, {"mode": "top_p", "value": 0.9}, "request", None),
        # ... inside the tier's bounds.
        ({"asked": {"budget": 9000}}, {"budget": 6000}, "tier", None),
        ({"asked": {"budget": 20}, "tier": "free"}, {"budget": 100}, "tier", None),
        (
            {"asked": {"mode": "top_p", "value": 0.9}, "tier": "free"},
            {"mode": "top_p", "value": 0.9, "budget": 700},
            "tier",
            None,
        ),
        # 0.01 of 8000 tokens is 80, below 100: the ratio that gives 100 is 1/80.
        (
            {"asked": {"mode": "ratio", "value": 0.01}, "tier": "free"},
            {"mode": "ratio", "value": 0.0125, "budget": 700},
            "tier",
            None,
        ),
        # 0.05 of 8000 tokens is 400: the limit is written beside it and changes nothing yet.
        (
            {"asked": {"mode": "ratio", "value": 0.05}, "tier": "free"},
            {"mode": "ratio", "value": 0.05, "budget": 700},
            "request",
            None,
        ),
        (
            {"asked": {"mode": "ratio", "value": 0.1}, "tier": "free"},
            {"mode": "ratio", "value": 0.1, "budget": 700},
            "tier",
            None,
        ),
        # The tier, before the rules.
        ({"tier": "gold", "model": "x-coder"}, {"budget": 5000}, "tier", None),
        ({"tier": "gold", "asked": {"budget": "auto"}}, {"budget": 5000}, "tier", None),
        # The rules in their order.
        ({"model": "x-coder", "route": "completions"}, {"budget": 6000}, "tier", "coder"),
        ({"model": "X-CODER"}, {"budget": 3000}, "default", None),
        ({"reasoning_effort": "high", "streaming": True}, {"budget": 1500}, "rule", "effort"),
        ({"reasoning_effort": "high"}, {"budget": 3000}, "default", None),
        ({"route": "completions"}, {"mode": "ratio", "value": 0.25, "budget": 2500}, "rule", "text"),
        ({"tokens": 20_000}, {"budget": 2000}, "rule", "long"),
        ({"tokens": 90_000}, {"budget": 4000}, "rule", "long"),
        # A share of the plan's: an eighth of 16,000.
        ({"tokens": 16_000, "asked": {"budget": "auto"}}, {"budget": 2000}, "rule", "medium"),
        ({"tokens": 16_000, "tier": "free"}, {"budget": 700}, "tier", "medium"),
        # The default.
        ({}, {"budget": 3000}, "default", None),
        ({"asked": {"budget": "auto"}}, {"budget": 3000}, "auto", None),
        ({"tier": "free"}, {"budget": 700}, "tier", None),
        # A tier that a reload has taken away: the limits of callers without one.
        ({"tier": "gone", "asked": {"budget": 9000}}, {"budget": 6000}, "tier", None),
    ],
)
def test_who_decides(changes, sent, reason, rule):
    decision = decide(question(**changes), conditions(POLICY))
    assert (decision.sent, decision.reason, decision.rule) == (LycheeRequest(**sent), reason, rule)
    assert decision.tier == changes.get("tier")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({}, "default"),
        ({"budget": "auto"}, "auto"),
        ({"budget": "auto", "mode": "top_p", "value": 0.9}, "auto"),
        ({"budget": 512}, "request"),
        ({"mode": "topk"}, "request"),
        ({"budget": "dense"}, "request"),
    ],
)
@pytest.mark.parametrize("policy", [None, Policy(version=1), Policy(version=1, pressure=Pressure())])
def test_without_a_say_of_the_policy_the_engine_is_asked_as_the_request_asks(asked, reason, policy):
    decision = decide(question(asked), conditions(policy))
    assert (decision.sent, decision.reason) == (LycheeRequest(**asked), reason)


@pytest.mark.parametrize(
    ("level", "budget"),
    # From 3000 down to 200: halfway in equal ratios is their geometric mean, 774.6.
    [(0.0, 3000), (0.5, 775), (1.0, 200)],
)
def test_pressure_shrinks_to_the_floor(level, budget):
    decision = decide(question(), conditions(POLICY, pressure=level))
    assert decision.sent == LycheeRequest(budget=budget)
    assert decision.reason == ("pressure" if level else "default")


@pytest.mark.parametrize("asked", [{}, {"budget": "auto"}, {"budget": "auto", "mode": "ratio", "value": 0.5}])
@pytest.mark.parametrize(
    ("bounds", "length", "left"),
    [
        # An eighth of 15,000 is 1,875, of 21,000 it would be 2,625: the estimate does not know which.
        (Bounds(max=2048), Length(tokens=15_000, low=9000, high=21_000), False),
        (Bounds(min=1800), Length(tokens=15_000, low=9000, high=21_000), False),
        (Bounds(min=512, max=4096), Length(tokens=15_000, low=9000, high=21_000), True),  # the plan's own limits
        (Bounds(max=2048), Length.exactly(15_000), True),
    ],
)
def test_auto_is_left_to_the_engine_where_no_length_leads_out_of_the_bounds(asked, bounds, length, left):
    plan = PlanDefaults(budget="auto", mode="topk", auto=PlanAuto(fraction=0.125, min=512, max=4096))
    policy = Policy(version=1, bounds=bounds)
    decision = decide(question(asked, length=length), conditions(policy, defaults=plan))
    assert decision.sent == LycheeRequest(**(asked if left else {**asked, "budget": 1875}))
    assert decision.expected.budget == 1875
    assert decision.reason == ("auto" if asked else "default")


def test_pressure_stops_at_the_lower_bound_of_the_tier():
    assert decide(question(tier="gold"), conditions(POLICY, pressure=1.0)).sent == LycheeRequest(budget=600)


@pytest.mark.parametrize(
    ("changes", "sent"),
    [
        ({"asked": {"budget": 4000}}, {"budget": 4000}),
        ({"asked": {"mode": "ratio", "value": 0.5}, "tier": "gold"}, {"mode": "ratio", "value": 0.5}),
        # Who gives dense wants exact answers.
        ({"model": "a-coder", "tier": "free"}, {"budget": 100}),
    ],
)
def test_what_pressure_does_not_touch(changes, sent):
    assert decide(question(**changes), conditions(POLICY, pressure=1.0)).sent == LycheeRequest(**sent)


def test_a_rule_that_gives_dense_is_not_shrunk():
    policy = Policy(version=1, default=Outcome(budget="dense"), pressure=Pressure())
    decision = decide(question(), conditions(policy, pressure=1.0))
    assert (decision.sent, decision.reason) == (LycheeRequest(budget="dense"), "default")


def test_the_plans_own_default_shrinks_too():
    policy = Policy(version=1, pressure=Pressure(floor=256))
    # From 1024 to 256: halfway is 512.
    decision = decide(question(), conditions(policy, pressure=0.5))
    assert (decision.sent, decision.reason) == (LycheeRequest(budget=512), "pressure")


@pytest.mark.parametrize(
    ("target", "batch", "tokens", "budget"),
    [
        (100, 1, 8000, "dense"),  # dense takes 10 + 80 ms
        (30, 1, 8000, 2000),  # 10 + 20
        (60, 2, 8000, 2000),  # twice (10 + 20)
        (50.96, 1, 8000, 4096),  # the largest that was measured
        (1, 1, 8000, 256),  # none is fast enough: the fastest
        (30, 1, 60_000, 256),  # the curve does not reach
    ],
)
def test_a_time_per_token(target, batch, tokens, budget):
    asked = question({"target_itl_ms": target}, tokens=tokens)
    decision = decide(asked, conditions(batch=batch))
    assert (decision.sent, decision.reason) == (LycheeRequest(budget=budget), "target_itl")


def test_a_time_per_token_of_a_rule_without_a_curve_is_the_plans_default():
    policy = Policy(version=1, default=Outcome(target_itl_ms=20))
    assert decide(question(), conditions(policy, times=None)).sent == LycheeRequest(budget=1024)


def test_a_recall_begins_large_and_stays_inside_its_bounds():
    policy = Policy(version=1, rules=(Rule(name="r", gives=Outcome(min_recall=0.97, max=2000)),))
    asked = decide(question({"min_recall": 0.97}), conditions(policy))
    assert (asked.reason, asked.rule) == ("min_recall", None)
    assert asked.sent.budget > 4000
    ruled = decide(question(), conditions(policy))
    assert (ruled.sent, ruled.reason, ruled.rule) == (LycheeRequest(budget=2000), "min_recall", "r")


def test_every_step_is_told():
    asked = question(tokens=16_000, tier="free", reasoning_effort="high", streaming=True)
    decision = decide(asked, conditions(POLICY, pressure=0.5))
    assert [(step.step, step.says) for step in decision.steps] == [
        ("request", "leaves it to the policy"),
        ("rule", "effort gives budget 1500"),
        ("bounds", "the tier allows 100 to 700: 700 tokens"),
        ("pressure", "at level 0.5: 265 tokens"),
    ]
    assert decision.expected == LycheeRequest(budget=265)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": 20_000}, "long gives 0.1 of the prompt, 800 to 4000 tokens"),
        ({"tokens": 9000}, "medium gives the head plan's share of the prompt, 800 to 4000 tokens"),
        ({"route": "completions"}, "text gives ratio 0.25, max 2500"),
    ],
)
def test_outcomes_in_words(changes, says):
    assert decide(question(**changes), conditions(POLICY)).steps[1].says == says


@pytest.mark.parametrize(
    ("low", "high", "doubt"),
    [
        (100, 8999, False),
        (100, 9000, True),
        (9000, 19_999, False),
        (19_000, 20_000, True),
        (20_000, 90_000, False),
        # Both ends below and above the same rule's range.
        (100, 90_000, True),
    ],
)
def test_when_the_estimated_length_is_too_rough(low, high, doubt):
    length = Length(tokens=(low + high) // 2, low=low, high=high)
    assert depends_on_length(POLICY, question(length=length)) is doubt
    # Nobody looks at the rules for these.
    assert not depends_on_length(POLICY, question({"budget": 64}, length=length))
    assert not depends_on_length(POLICY, question(length=length, tier="gold"))
    assert not depends_on_length(None, question(length=length))
    # An earlier rule decides at any length.
    assert not depends_on_length(POLICY, question(length=length, model="a-coder"))


def test_a_rule_whose_range_is_inside_the_estimate_is_found():
    rule = Rule(name="r", when=When(prompt_tokens={"min": 500, "max": 600}), gives=Outcome(budget=64))
    assert depends_on_length(Policy(version=1, rules=(rule,)), question(length=Length(tokens=550, low=100, high=900)))
