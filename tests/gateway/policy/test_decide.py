"""From a request and a policy to a budget: by hand, and as laws that hold for any policy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_server.policy.decide import Conditions, Question, decide, depends_on_length, is_open
from lychee_server.policy.file import parse_policy
from lychee_server.policy.lengths import Length
from lychee_server.policy.recall import Audit, RecallKeeper
from lychee_server.policy.schema import Bounds, Outcome, Policy, Pressure, Range, RecallHold, Rule, Tier, When
from lychee_server.schemas import LycheeRequest, PlanDefaults

WINDOW = 100_000


class Times:
    """A curve by hand: 10 ms and 1 ms for each 100 tokens of budget; dense as a budget of the whole context."""

    budgets = (256, 1024, 4096)

    def itl_ms(self, budget, context, batch):
        if context > 50_000:
            return None
        return batch * (10 + min(context if budget == "dense" else budget, context) / 100)


def conditions(policy=None, **changes):
    base = {
        "policy": policy,
        "defaults": PlanDefaults(budget=1024, mode="topk"),
        "context_window": WINDOW,
        "served": "tiny",
        "recalls": RecallKeeper(RecallHold()),
        "times": Times(),
        "batch": 1,
        "pressure": 0.0,
    }
    return Conditions(**{**base, **changes})


def question(asked=None, tokens=8000, **changes):
    base = {"route": "chat", "streaming": False, "model": "tiny", "reasoning_effort": None, "tier": None}
    length = changes.pop("length", Length.exactly(tokens))
    return Question(asked=LycheeRequest(**(asked or {})), length=length, **{**base, **changes})


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


# Laws.

tokens_ = st.integers(1, 20_000)
bounds_ = st.builds(
    lambda a, b, low, high: Bounds(min=min(a, b) if low else None, max=max(a, b) if high else None),
    tokens_,
    tokens_,
    st.booleans(),
    st.booleans(),
)


def limited(outcome: Outcome, bounds: Bounds) -> Outcome:
    return Outcome(**outcome.model_dump(exclude={"min", "max"}), min=bounds.min, max=bounds.max)


plain_outcomes = st.one_of(
    st.builds(Outcome, budget=st.one_of(tokens_, st.sampled_from(["dense", "auto"]))),
    st.builds(
        lambda a, b, share: Outcome(range=Range(min=min(a, b), max=max(a, b), share=share)),
        tokens_,
        tokens_,
        st.one_of(st.none(), st.floats(0.01, 1)),
    ),
)
free_outcomes = st.one_of(
    st.builds(Outcome, ratio=st.floats(0.001, 1)),
    st.builds(Outcome, min_recall=st.floats(0.5, 0.999)),
    st.builds(Outcome, target_itl_ms=st.floats(1, 500)),
)
outcomes = st.one_of(plain_outcomes, st.builds(limited, free_outcomes, bounds_))
rules = st.builds(
    lambda bound, effort, gives: (bound, effort, gives),
    st.one_of(st.none(), tokens_),
    st.sampled_from([None, ("high",)]),
    outcomes,
)
policies = st.builds(
    lambda default, bounds, tier, gives, rules, pressure: Policy(
        version=1,
        default=default,
        bounds=bounds,
        tiers={"gold": Tier(bounds=tier, gives=gives)},
        rules=tuple(
            Rule(
                name=f"r{i}",
                when=When(prompt_tokens=None if low is None else {"min": low}, reasoning_effort=effort),
                gives=given,
            )
            for i, (low, effort, given) in enumerate(rules)
        ),
        pressure=Pressure(floor=200) if pressure else None,
    ),
    st.one_of(st.none(), outcomes),
    bounds_,
    bounds_,
    st.one_of(st.none(), outcomes),
    st.lists(rules, max_size=4),
    st.booleans(),
)
requests = st.one_of(
    st.just({}),
    st.just({"budget": "auto"}),
    st.builds(lambda b: {"budget": b}, st.one_of(tokens_, st.just("dense"))),
    st.builds(lambda v: {"mode": "ratio", "value": v}, st.floats(0.001, 1)),
    st.builds(
        lambda v, b: {"mode": "top_p", "value": v, "budget": b}, st.floats(0.1, 1), st.one_of(st.none(), tokens_)
    ),
    st.builds(lambda r: {"min_recall": r}, st.floats(0.5, 0.999)),
    st.builds(lambda t: {"target_itl_ms": t}, st.floats(1, 500)),
)
questions = st.builds(
    lambda asked, tokens, effort, tier: question(asked, tokens=tokens, reasoning_effort=effort, tier=tier),
    requests,
    st.integers(1, 60_000),
    st.sampled_from([None, "high"]),
    st.sampled_from([None, "gold", "gone"]),
)
levels = st.one_of(st.just(0.0), st.floats(0, 1))


def test_a_ratios_own_upper_bound_gives_way_to_the_tiers_lower_one():
    policy = Policy.model_validate({"version": 1, "bounds": {"min": 256}, "default": {"ratio": 1.0, "max": 100}})
    assert decide(question(tokens=1000), conditions(policy)).sent == LycheeRequest(mode="ratio", value=1.0, budget=256)


def size(form: LycheeRequest, tokens: int) -> int:
    """How many tokens a set may hold at the prompt's end; dense and unbounded modes: all."""
    everything = tokens
    found = everything if form.budget in (None, "dense") else form.budget
    if form.mode == "ratio":
        found = min(found, max(1, -(-form.value * tokens // 1)))
    return int(found)


@settings(deadline=None)
@given(policies, questions, levels)
def test_no_budget_is_outside_of_the_tiers_bounds(policy, asked, level):
    decision = decide(asked, conditions(policy, pressure=level))
    bounds = policy.tiers["gold"].bounds if asked.tier == "gold" else policy.bounds
    got = size(decision.expected, asked.length.tokens)
    if bounds.max is not None:
        assert got <= bounds.max or decision.expected.budget == bounds.max
    if bounds.min is not None and decision.expected.mode != "top_p":
        assert got >= min(bounds.min, asked.length.tokens)
    assert not isinstance(decision.sent.budget, int) or 1 <= decision.sent.budget <= WINDOW


@settings(deadline=None)
@given(policies, questions, levels)
def test_a_request_that_names_a_budget_within_bounds_gets_it(policy, asked, level):
    bounds = policy.tiers["gold"].bounds if asked.tier == "gold" else policy.bounds
    decision = decide(asked, conditions(policy, pressure=level))
    budget = asked.asked.budget
    if isinstance(budget, int) and asked.asked.mode is None and bounds.clamp(budget) == budget:
        assert (decision.sent, decision.reason) == (asked.asked, "request")


@settings(deadline=None)
@given(policies, questions)
def test_the_order_of_those_who_decide(policy, asked):
    decision = decide(asked, conditions(policy))
    givers = [step.step for step in decision.steps if step.step in ("tier", "rule", "default", "plan")]
    matching = [
        rule.name
        for rule in policy.rules
        if (rule.when.prompt_tokens is None or asked.length.tokens >= rule.when.prompt_tokens.min)
        and (rule.when.reasoning_effort is None or asked.reasoning_effort == "high")
    ]
    if not is_open(asked.asked):
        expected = None
    elif asked.tier == "gold" and policy.tiers["gold"].gives is not None:
        expected = "tier"
    elif matching:
        expected = "rule"
        assert decision.rule == matching[0]
    else:
        expected = "plan" if policy.default is None else "default"
    assert givers == ([expected] if expected else [])


@settings(deadline=None)
@given(policies, questions, st.lists(levels, min_size=2, max_size=4))
def test_more_pressure_never_gives_more(policy, asked, several):
    sizes = [
        size(decide(asked, conditions(policy, pressure=level)).expected, asked.length.tokens)
        for level in sorted(several)
    ]
    assert sizes == sorted(sizes, reverse=True)


@settings(deadline=None)
@given(policies, questions, levels)
def test_looking_moves_nothing(policy, asked, level):
    keeper = RecallKeeper(RecallHold())
    for recall in (0.9, 0.95, 0.97):
        keeper.observe("tiny", Audit(prompt_tokens=8000, answer_tokens=40, budget=2000, recall=recall))
    before = keeper.state()
    looked = decide(asked, conditions(policy, pressure=level, recalls=keeper, dry=True))
    assert keeper.state() == before
    assert decide(asked, conditions(policy, pressure=level, recalls=keeper)).sent == looked.sent
