"""The gateway's bench: real processes, small numbers; and its arithmetic by hand."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from typer.testing import CliRunner

from lychee_sgl.bench import gateway, gateway_mix
from lychee_sgl.bench.cli import app
from lychee_sgl.bench.echo_engine import answer_text
from lychee_sgl.bench.gateway_parts import Child, GatewayBenchError, Reply, ask, client, quantile, stack


@pytest.fixture(scope="module")
def running():
    with stack(options=("--max-concurrency", "600")) as (through, (engine,)):
        yield through, engine


def test_both_ways_are_timed_and_every_answer_is_looked_at(running):
    record = asyncio.run(gateway.first_tokens(*running, characters=200, rounds=20, at_once=2))
    assert record["answers"] == 40
    for share in ("p50", "p90", "p99"):
        row = record[share]
        assert row["added_ms"] == pytest.approx(row["gateway_ms"] - row["direct_ms"], abs=0.002)
        assert 0 < row["direct_ms"] < 10_000
    assert record["p50"]["gateway_ms"] <= record["p99"]["gateway_ms"]


def test_five_hundred_streams_at_once_lose_no_chunk(running):
    record = asyncio.run(gateway.streams(running[0], count=500, chunks=20, pause=0.2))
    assert record["whole_answers"] == 500
    assert record["chunks_received"] == record["chunks_expected"] == 500 * 20


def test_a_wrong_answer_ends_the_measurement(running):
    through, engine = running
    body = gateway._question(200, 1, max_tokens=2)

    async def measure() -> None:
        async with client() as session:
            assert await gateway._first_token(session, through.url, body) > 0
            await gateway._first_token(session, engine.url + "/nothing", body)

    with pytest.raises(GatewayBenchError, match="/nothing: status 200"):
        asyncio.run(measure())


def test_a_mix_with_killed_engines_adds_up():
    record = gateway_mix.run(600, lambda _: None, at_once=32)
    assert record["problems"] == []
    seen = record["clients_saw"]
    assert sum(seen.values()) == sum(record["gateway_counted"].values()) == 600
    assert "wrong" not in seen
    assert seen["answered"] > 400
    assert record["gateway_counted"]["400"] == seen["refused"] > 0
    assert record["gateway_counted"]["499"] > 0


@pytest.mark.parametrize(
    ("outcomes", "statuses", "in_flight", "words"),
    [
        ({"answered": 9, "left": 1}, {"200": 9, "499": 1}, 0, None),
        ({"answered": 9, "left": 1}, {"200": 10}, 0, None),  # it left when all was on the way
        ({"answered": 8, "left": 2}, {"200": 9, "503": 1}, 0, None),  # its engine died at that moment
        ({"answered": 8, "error": 1, "refused": 1}, {"200": 8, "400": 1, "503": 1}, 0, None),
        ({"answered": 9, "wrong": 1}, {"200": 10}, 0, "1 answers were wrong"),
        ({"answered": 9}, {"200": 9}, 0, "10 requests, 9 outcomes, 9 counted"),
        ({"answered": 10}, {"200": 9, "499": 1}, 0, "10 answered, 0 errors, 0 left; counted {'200': 9, '499': 1}"),
        ({"answered": 9, "error": 1}, {"200": 10}, 0, "9 answered, 1 errors, 0 left"),
        ({"answered": 9, "refused": 1}, {"200": 9, "503": 1}, 0, "1 refused; counted"),
        ({"answered": 10}, {"200": 10}, 1, "1 requests still in flight"),
    ],
)
def test_what_does_not_add_up_is_said(outcomes, statuses, in_flight, words):
    found = gateway_mix.problems(10, Counter(outcomes), statuses, in_flight, [0])
    assert (found == []) if words is None else any(words in each for each in found)


def test_outcomes():
    body = {"messages": [{"content": "mark 7"}], "max_tokens": 2}
    whole = answer_text(body)
    assert whole == "mark 7#0 mark 7#1 "
    cases = [
        (Reply(status=200, text=whole, done=True), -1, "answered"),
        (Reply(status=200, text=whole[:-2], done=True), -1, "wrong"),
        (Reply(status=200, text="mark 8#0 ", done=False), 1, "wrong"),
        (Reply(status=200, text="mark 7#0 "), 1, "left"),
        (Reply(status=200, text="mark 7#0 "), -1, "wrong"),  # it ended without a word
        (Reply(status=200, text="mark 7#0 ", error="engine_unavailable"), -1, "error"),
        (Reply(status=503, error="engine_unavailable"), -1, "error"),
        (Reply(status=400, error="invalid_value"), -1, "wrong"),
    ]
    assert [gateway_mix._outcome(body, leave, reply) for reply, leave, _ in cases] == [word for *_, word in cases]
    bad = {**body, "lychee": {"budget": 0}}
    assert gateway_mix._outcome(bad, -1, Reply(status=400, error="invalid_value")) == "refused"


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.9, 90), (1.0, 100), (0.001, 1), (0.505, 51)])
def test_quantile(share, expected):
    assert quantile(list(range(100, 0, -1)), share) == expected


def test_a_process_that_does_not_start_is_named():
    child = Child("lychee_sgl.bench.no_such_module", ready="/")
    child.start()
    with pytest.raises(GatewayBenchError, match=r"this process ended: .*no_such_module"):
        child.wait()


def test_a_server_that_is_away_is_a_reply():
    async def lost() -> Reply:
        async with client() as session:
            return await ask(session, "http://127.0.0.1:9", {})

    assert asyncio.run(lost()).error == "connection"


def test_options_are_checked():
    assert CliRunner().invoke(app, ["gateway", "--rounds", "1"]).exit_code == 2
