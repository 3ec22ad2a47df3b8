"""The level of pressure: what it is made of, how it moves."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_server.policy.pressure import EngineLoad, PressureGauge, Signals, parse_loads, shrunk
from lychee_server.policy.schema import Pressure

SETTINGS = Pressure(queue={"low": 4, "high": 24}, kv_use={"low": 0.8, "high": 1.0}, rise_seconds=5, fall_seconds=30)


def drive(gauge: PressureGauge, start: float, signals: list[Signals]) -> list[float]:
    """Show the gauge one set of signals a second."""
    levels = []
    for number, each in enumerate(signals):
        gauge.update(each, SETTINGS, start + number)
        levels.append(gauge.level)
    return levels


def test_a_load_comes_in_smoothly_and_in_full():
    levels = drive(PressureGauge(), 0.0, [Signals(queue=100)] * 30)
    assert levels == sorted(levels)
    assert levels[0] < 0.2  # 1 - exp(-1/5) = 0.181
    assert levels[4] == pytest.approx(1 - math.exp(-1), abs=0.1)
    assert levels[-1] == 1.0


def test_it_goes_more_slowly_than_it_comes():
    gauge = PressureGauge()
    drive(gauge, 0.0, [Signals(queue=100)] * 30)
    levels = drive(gauge, 30.0, [Signals()] * 200)
    assert levels[10] > 0.6  # exp(-11/30) = 0.693
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == 0.0


@pytest.mark.parametrize(
    ("signals", "level"),
    [
        (Signals(queue=4), 0.0),
        (Signals(queue=14), 0.5),
        (Signals(kv_use=0.9), 0.5),
        (Signals(queue=14, kv_use=0.95), 0.75),
    ],
)
def test_the_larger_of_two_ramps(signals, level):
    assert drive(PressureGauge(), 0.0, [signals] * 200)[-1] == pytest.approx(level, abs=0.1)


def test_noise_around_a_steady_load_moves_nothing():
    chance = random.Random(3)
    gauge = PressureGauge()
    drive(gauge, 0.0, [Signals(queue=14)] * 100)
    levels = drive(gauge, 100.0, [Signals(queue=max(0, round(chance.gauss(14, 3)))) for _ in range(500)])
    assert sum(a != b for a, b in pairwise(levels)) <= 2


def test_without_settings_there_is_none():
    gauge = PressureGauge()
    drive(gauge, 0.0, [Signals(queue=100)] * 30)
    gauge.update(Signals(queue=100), None, 31.0)
    assert gauge.level == 0.0
    assert gauge.signals.queue == 100


def test_loads_as_sglang_tells_them():
    one = {"dp_rank": 0, "num_running_reqs": 3, "num_waiting_reqs": 5, "token_usage": 0.4, "gen_throughput": 9.0}
    two = {**one, "num_running_reqs": 7, "num_waiting_reqs": 1, "token_usage": 0.9}
    loads = parse_loads(f'{{"version": "0", "loads": [{_json(one)}, {_json(two)}]}}'.encode())
    assert loads is not None
    assert Signals.of(2, loads) == Signals(queue=8, kv_use=0.9)
    assert Signals.of(2, []) == Signals(queue=2)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"loads": [{"num_waiting_reqs": -1, "token_usage": 0}]}', b'{"loads": {}}']
)
def test_what_is_no_load(body):
    assert parse_loads(body) is None


def _json(load: dict[str, float]) -> str:
    return EngineLoad(**load).model_dump_json()


@settings(deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_shrinking_is_bounded_and_monotone(budget, floor, one, other):
    low, high = sorted((one, other))
    assert min(budget, floor) <= shrunk(budget, floor, high) <= shrunk(budget, floor, low) <= budget
    assert shrunk(budget, floor, 0) == budget
    assert shrunk(budget, floor, 1) == min(budget, floor)
