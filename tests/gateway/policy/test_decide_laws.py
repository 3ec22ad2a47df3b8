"""From a request and a policy to a budget: laws that hold for any policy."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_server.policy.decide import decide, is_open
from lychee_server.policy.recall import Audit, RecallKeeper
from lychee_server.policy.schema import Bounds, Outcome, Policy, Pressure, Range, RecallHold, Rule, Tier, When
from lychee_server.schemas import LycheeRequest
from tests.gateway.policy.deciding import WINDOW, conditions, question

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
