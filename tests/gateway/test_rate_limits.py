"""Limits of a tier: requests and tokens a minute, requests at one time. Times by hand."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from lychee_server.errors import TooManyRequests
from lychee_server.keys import Caller, hash_key
from lychee_server.limits import Limits, TokenBucket
from lychee_server.metrics import GatewayMetrics
from lychee_server.policy.schema import Tier

ALICE, BOB = Caller("alice", "gold"), Caller("bob", "gold")


class World:
    def __init__(self, **tier):
        self.now = 0.0
        self.tier = Tier(**tier)
        self.registry = CollectorRegistry()
        self.limits = Limits(lambda _: self.tier, GatewayMetrics(self.registry), clock=lambda: self.now)

    def ask(self, caller=ALICE, body_bytes=0, tokens=0.0):
        with self.limits.open(caller, body_bytes) as lease:
            lease.settle(tokens)

    def refused(self, caller=ALICE, body_bytes=0) -> TooManyRequests:
        with pytest.raises(TooManyRequests) as refusal:
            self.ask(caller, body_bytes)
        return refusal.value


def test_bucket():
    bucket = TokenBucket(60, now=0)
    assert bucket.wait(60, 0) == 0
    bucket.take(60)
    assert bucket.wait(1, 0) == 1
    assert bucket.wait(1, 1) == 0
    assert bucket.wait(1000, 30) == 30  # more than a minute's worth: a full bucket will do
    assert bucket.wait(60, 1e6) == 0
    bucket.take(90)  # thirty in debt
    assert bucket.wait(1, 1e6) == 31
    bucket.take(-90)
    assert bucket.wait(60, 1e6) == 0


def test_a_resized_bucket_remembers_what_was_taken():
    bucket = TokenBucket(60, now=0)
    bucket.take(50)
    bucket.resize(120, now=0)
    assert bucket.wait(70, 0) == 0
    assert bucket.wait(71, 0) == pytest.approx(0.5)
    bucket.resize(60, now=0)
    assert bucket.wait(11, 0) == 1


def test_requests_per_minute_are_each_keys_own():
    world = World(requests_per_minute=3)
    for _ in range(3):
        world.ask()
    refusal = world.refused()
    assert refusal.retry_after == 20
    assert refusal.code == "requests_limit_exceeded"
    assert refusal.message == "the limit of this key, 3 requests a minute, is reached; try again in 20 seconds"
    world.ask(BOB)
    world.now = 19.9
    assert world.refused().retry_after == pytest.approx(0.1)
    world.now = 20.0
    world.ask()
    assert world.registry.get_sample_value("lychee_requests_refused_total", {"reason": "requests_limit"}) == 2


def test_tokens_are_charged_as_they_were_used():
    world = World(tokens_per_minute=600)
    world.ask(body_bytes=400, tokens=500)  # reserved 100, used 500
    assert world.refused(body_bytes=404).retry_after == pytest.approx(0.1)  # 101 of 100, ten a second
    world.ask(body_bytes=400, tokens=0)  # all given back
    world.ask(body_bytes=400, tokens=400)  # 300 in debt
    refusal = world.refused(body_bytes=4)
    assert refusal.retry_after == pytest.approx(30.1)
    assert refusal.code == "tokens_limit_exceeded"
    world.now = 30.1
    world.ask(body_bytes=4)


def test_a_prompt_above_the_whole_limit_waits_for_a_full_bucket_and_comes_through():
    world = World(tokens_per_minute=60)
    world.ask(body_bytes=4000, tokens=1000)
    assert world.refused(body_bytes=4000).retry_after == 1000
    world.now = 1000.0
    world.ask(body_bytes=4000, tokens=1000)


def test_a_request_refused_for_its_tokens_costs_no_request():
    world = World(requests_per_minute=2, tokens_per_minute=60)
    world.ask(body_bytes=240, tokens=61)
    for _ in range(5):
        assert world.refused(body_bytes=4).code == "tokens_limit_exceeded"
    world.now = 2.0
    world.ask(body_bytes=4)
    assert world.refused(body_bytes=4).code == "requests_limit_exceeded"


def test_requests_at_one_time():
    world = World(max_in_flight=2)
    with world.limits.open(ALICE, 0), world.limits.open(ALICE, 0):
        assert world.refused().code == "concurrency_limit_exceeded"
        world.ask(BOB)
    world.ask()


def test_a_new_policy_counts_at_once():
    world = World(requests_per_minute=1)
    world.ask()
    world.refused()
    world.tier = Tier()
    world.ask()
    world.tier = Tier(requests_per_minute=2)
    world.ask()
    world.ask()
    world.refused()


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/chat/completions", {"n": 2, "messages": [{"role": "user", "content": "x" * 2000}]}),
        ("/v1/completions", {"prompt": ["x" * 1000, "y" * 1000]}),
    ],
    ids=["several choices", "several prompts"],
)
def test_a_stream_without_usage_is_charged_its_body(start_gateway, tmp_path, path, more):
    policy, key = tmp_path / "policy.yaml", "lychee-test-key-of-alice"
    policy.write_text("version: 1\ntiers: {gold: {tokens_per_minute: 1000}}\n")
    keys = tmp_path / "keys.yaml"
    keys.write_text(f'- {{id: alice, tier: gold, sha256: "{hash_key(key)}"}}\n')
    gateway = start_gateway(policy_file=policy, keys_file=keys)
    body = {"stream": True, **more}
    statuses = [
        gateway.http.post(path, json=body, headers={"authorization": f"Bearer {key}"}).status_code for _ in range(2)
    ]
    assert statuses == [200, 429]  # more than 500 tokens each, of 1000


def test_accounts_of_keys_that_are_gone_are_forgotten():
    world = World(requests_per_minute=1)
    world.ask()
    with world.limits.open(BOB, 0):
        world.limits.keep({"alice"})
    world.refused(ALICE)
    world.refused(BOB)  # had a request in flight
    world.limits.keep({"alice"})
    world.refused(ALICE)
    world.ask(BOB)
