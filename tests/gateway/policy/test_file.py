"""What a policy file may say, and in which words a wrong one is refused."""

from __future__ import annotations

import pytest

from lychee_server.policy.file import PolicyError, load_policy, parse_policy
from lychee_server.policy.schema import Bounds, UnknownTier

GOOD = """
version: 1
default: {budget: auto}
bounds: {max: 4096}
tiers:
  gold:
    priority: 10
    requests_per_minute: 600
    bounds: {min: 512, max: 16384}
    gives: {min_recall: 0.97, max: 8192}
  free: {max_in_flight: 2}
rules:
  - name: long
    when: {prompt_tokens: {min: 32768}, model: [Qwen*, Llama*], tier: free}
    gives: {ratio: 0.1, max: 4096}
  - name: thinking
    when: {reasoning_effort: high, route: chat, streaming: true}
    gives: {range: {min: 1024, max: 8192, share: 0.25}}
pressure: {queue: {low: 8, high: 64}}
"""


def test_a_whole_file():
    policy = parse_policy(GOOD, "p.yaml")
    gold = policy.tier("gold")
    assert (gold.priority, gold.requests_per_minute, gold.tokens_per_minute, gold.max_in_flight) == (
        10,
        600,
        None,
        None,
    )
    assert policy.tier("free").bounds == Bounds()
    assert policy.tier(None).bounds == Bounds(max=4096)
    assert policy.rules[0].when.model == ("Qwen*", "Llama*")
    assert policy.rules[0].when.tier == ("free",)
    assert len(policy.outcomes()) == 4


def test_a_tier_that_is_not_there():
    with pytest.raises(UnknownTier, match="there is no tier 'silver' in the policy; tiers are: gold, free"):
        parse_policy(GOOD, "p.yaml").tier("silver")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p:1: a mapping with the key version is needed; given: null"),
        ("[]", "p:1: a mapping with the key version is needed; given: []"),
        ("rules: []", "p:1: version is missing"),
        ("version: 2", "p:1: version is 2: Input should be 1"),
        ("version: 1\nversion: 1", "p:2: version is given twice"),
        ("version: 1\nrules: [", "p:2: not YAML: expected the node content, but found '<stream end>'"),
        ("version: 1\nrulez: []", "p:2: rulez is not known"),
        (
            "version: 1\ntiers:\n  gold:\n    priority: high",
            'p:4: tiers.gold.priority is "high": Input should be a valid integer',
        ),
        (
            "version: 1\ntiers:\n  gold:\n    max_in_flight: 0",
            "p:4: tiers.gold.max_in_flight is 0: Input should be greater than or equal to 1",
        ),
        (
            "version: 1\nbounds: {min: 9, max: 3}",
            "p:2: bounds: min is 9, above max, which is 3",
        ),
        (
            "version: 1\nrules:\n- name: a\n  gives: {budget: 64}\n- name: b\n  gives: {budget: 64, ratio: 0.5}",
            "p:6: rules[1].gives: exactly one of budget, range, ratio, min_recall, target_itl_ms is needed; "
            "given: budget and ratio",
        ),
        (
            "version: 1\ndefault: {}",
            "p:2: default: exactly one of budget, range, ratio, min_recall, target_itl_ms is needed; given: none",
        ),
        (
            "version: 1\ndefault: {budget: 64, max: 128}",
            "p:2: default: min and max go with ratio, min_recall and target_itl_ms, not with budget",
        ),
        ("version: 1\ndefault: {ratio: 0.5, min: 9, max: 3}", "p:2: default: min is 9, above max, which is 3"),
        (
            "version: 1\ndefault:\n  min_recall: 1.0",
            "p:3: default.min_recall is 1.0: Input should be less than or equal to 0.999",
        ),
        (
            "version: 1\nrules:\n- name: a\n  gives: {budget: 1}\n- name: a\n  gives: {budget: 1}",
            "p:2: rules: two rules have the name 'a'",
        ),
        (
            "version: 1\nrules:\n- name: a\n  when: {tier: gold}\n  gives: {budget: 1}",
            "p:1: the policy: rule 'a' is for the tier 'gold'; tiers are: none",
        ),
        (
            "version: 1\nrules:\n- name: a\n  when: {route: embeddings}\n  gives: {budget: 1}",
            "p:4: rules[0].when.route is",
        ),
        (
            "version: 1\npressure: {queue: {low: 4, high: 4}}",
            "p:2: pressure.queue: low is 4, not below high, which is 4",
        ),
        ("version: 1\ndefault: {budget: \x00}", "p: not YAML: unacceptable character #x0000"),
        ("version: 1\ndefault: !!python/object:os.system {}", "p:2: not YAML: could not determine a constructor"),
    ],
)
def test_refused(text, message):
    with pytest.raises(PolicyError) as refused:
        parse_policy(text, "p")
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("budget", ["0", "all", "1.5", "yes", "-3", '"512"'])
def test_a_wrong_budget_is_shown_with_its_line(budget):
    with pytest.raises(
        PolicyError, match=r"p:3: default\.budget is .*: allowed are a whole number from 1, dense and auto$"
    ):
        parse_policy(f"version: 1\ndefault:\n  budget: {budget}", "p")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PolicyError, match=r"nowhere\.yaml: No such file or directory"):
        load_policy(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("inner", "outer", "both"),
    [
        ((None, None), (None, None), (None, None)),
        ((512, 4096), (None, None), (512, 4096)),
        ((512, 4096), (1024, 2048), (1024, 2048)),
        # No overlap: the outer one wins.
        ((512, 600), (1024, 2048), (1024, 1024)),
        ((4096, 8192), (1024, 2048), (2048, 2048)),
        ((None, 600), (1024, None), (1024, 1024)),
    ],
)
def test_bounds_inside_bounds(inner, outer, both):
    result = Bounds(min=inner[0], max=inner[1]).within(Bounds(min=outer[0], max=outer[1]))
    assert (result.min, result.max) == both
