"""The page's modules that only compute, run where they run for users: in the browser."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from lychee_server.metrics import GatewayMetrics
from lychee_server.schemas import EngineSummary
from tests.gateway.scripted_engine import SUMMARY


@pytest.fixture
def page(open_tab, gateway):
    return open_tab(gateway, ready=False)


@pytest.fixture
def call(page):
    """Call an exported function of a module with JSON arguments."""

    def of(module, function, *arguments):
        script = "async ([module, name, given]) => (await import(`/page/${module}.js`))[name](...given)"
        return page.evaluate(script, [module, function, list(arguments)])

    return of


def exposition(gaps, answers):
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    for gap in gaps:
        metrics.token_gap(gap)
    for budget, recall in answers:
        metrics.summary(EngineSummary(**{**SUMMARY, "budget": budget, "recall": recall}), "request")
    metrics.request_counted("/v1/completions", 200)
    metrics.request_counted("/v1/completions", 503)
    metrics.request_counted("other", 404)
    return generate_latest(registry).decode()


def test_charts_show_what_happened_between_two_scrapes(call):
    before = call("live", "sampleOf", exposition([5.0] * 7, [(4096, 0.5)]), 100)
    after = call(
        "live",
        "sampleOf",
        exposition([5.0] * 7 + [0.025] * 30 + [0.045] * 10, [(4096, 0.5), (512, 0.9), (256, 1)]),
        120,
    )
    point = call("live", "pointOf", before, after)
    assert point["at"] == 120
    assert point["tokensPerSecond"] == 2  # 40 tokens in 20 seconds
    assert point["budget"] == 384
    assert point["recall"] == pytest.approx(0.95)
    # ranks 20 and 38 of 40; buckets (0.02, 0.03] with 30 and (0.03, 0.05] with 10 of them
    assert point["gapMedian"] == pytest.approx(0.02 + 0.01 * 20 / 30)
    assert point["gapHigh"] == pytest.approx(0.03 + 0.02 * 8 / 10)
    assert point["firstMedian"] is None
    assert point["failed"] == 0
    restarted = call("live", "pointOf", after, call("live", "sampleOf", exposition([0.025], [(512, 0.75)]), 140))
    assert restarted["recall"] == pytest.approx(0.75)
    assert restarted["tokensPerSecond"] == pytest.approx(1 / 20)


def test_speedup_shows_where_a_curve_was_measured(call):
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    bare = call("live", "sampleOf", generate_latest(registry).decode(), 100)
    assert bare["hasCurve"] is False
    metrics.curve_loaded("tiny", "built-in", "cpu", "2030-01-02")
    before = call("live", "sampleOf", generate_latest(registry).decode(), 110)
    assert before["hasCurve"] is True
    assert call("live", "pointOf", bare, before)["speedup"] is None
    summary = EngineSummary(**{**SUMMARY, "decode_seconds": 2.0})
    metrics.speedup(summary, 5.0)
    dense = EngineSummary(**{**SUMMARY, "decode_seconds": 2.0, "sparse_steps": 0})
    metrics.speedup(dense, 2.0)
    after = call("live", "sampleOf", generate_latest(registry).decode(), 120)
    assert call("live", "pointOf", before, after)["speedup"] == pytest.approx(2.5)


def test_labels_are_summed_and_odd_numbers_read(page):
    lines = [
        'a_bucket{x="1",le="0.5"} 1',
        r'a_bucket{le="0.5",x="2 } \"q"} 2',
        'a_bucket{x="1",le="+Inf"} 4',
        "a_count 4",
        "a_sum 3e1",
        "",
    ]
    script = """async (text) => {
      const { parse, histogram, quantile } = await import("/page/prometheus.js");
      const { buckets, count, sum } = histogram(parse(text), "a");
      return [buckets.map(([bound, size]) => [String(bound), size]), count, sum, quantile(0.99, { buckets, count })];
    }"""
    found = page.evaluate(script, "\n".join(lines))
    assert found == [[["0.5", 3], ["Infinity", 4]], 4, 30, 0.5]


def test_events_are_cut_wherever_the_bytes_are(page):
    stream = 'data: {"a": 1}\r\n\r\n: a comment\n\ndata: x\ndata: y\n\ndata: [DONE]\n\n'
    script = """async (stream) => {
      const { EventReader } = await import("/page/api.js");
      const seen = new Set();
      for (let cut = 0; cut <= stream.length; cut += 1) {
        const reader = new EventReader();
        seen.add(JSON.stringify([...reader.feed(stream.slice(0, cut)), ...reader.feed(stream.slice(cut))]));
      }
      return [...seen];
    }"""
    assert page.evaluate(script, stream) == ['["{\\"a\\": 1}","x\\ny","[DONE]"]']


def test_example_hides_its_fact_once(call):
    for characters, seed in [(300, 1), (1000, 2), (13_000, 3), (26_400, 4), (26_400, 5), (26_400, 6)]:
        made = call("example", "writeExample", characters, seed)
        assert made["text"].count(made["expected"]) == 1
        assert re.fullmatch(r"\d{7}", made["expected"])
        # an entry has 350 to 700 characters
        assert characters <= len(made["text"]) < characters + 1400
        assert abs(made["text"].index(made["expected"]) - made["depth"] * characters) < 1400
    assert call("example", "writeExample", characters, seed) == made
    assert call("example", "writeExample", characters, seed + 1)["text"] != made["text"]


def test_stops_of_the_slider(call):
    assert call("budget", "stopsTo", 300) == [64, 96, 128, 192, 256, 300]
    assert call("budget", "stopsTo", 256) == [64, 96, 128, 192, 256]
    assert call("budget", "stopsTo", 50) == [50]
    assert [call("budget", "nearest", [64, 96, 128], tokens) for tokens in (1, 79, 100, 9000)] == [0, 1, 1, 2]


def test_texts_are_compared_by_words(call):
    for one, other, expected in [
        ("It is  5.\n", "It is 5.", {"same": True}),
        ("It is 5.", "It is 6.", {"same": False, "word": 3}),
        ("It is", "It is 6.", {"same": False, "word": 3}),
        ("", "a", {"same": False, "word": 1}),
    ]:
        assert call("answer", "compareTexts", one, other) == expected


def test_scales_end_at_round_numbers(call):
    for value, limit in [(0, 1), (0.013, 0.02), (0.2, 0.2), (3, 5), (51, 100), (100, 100)]:
        assert call("chart", "roundAbove", value) == pytest.approx(limit)


def test_numbers_in_words(call):
    shown = [call("words", "duration", seconds) for seconds in (None, 0, 0.0042, 0.0456, 1.234, 50, 23.61, 123.4)]
    assert shown == [
        "\N{EN DASH}",
        "0",
        *(text.replace(" ", "\u00a0") for text in ("4.2 ms", "46 ms", "1.23 s", "50 s", "23.6 s", "123 s")),
    ]
    assert [call("words", "percent", share) for share in (0.2614, 1, 0.9999)] == [
        "26.1\u00a0%",
        "100\u00a0%",
        "100.0\u00a0%",
    ]
