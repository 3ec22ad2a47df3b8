"""The speed curve: expected times by hand from eleven measured points."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lychee_server.curve import CurveError, SpeedCurve
from lychee_server.schemas import SparsityInfo
from tests.gateway.scripted_engine import INFO


def point(budget, context, batch, itl_ms):
    return {
        "budget": budget,
        "context": context,
        "batch": batch,
        "itl_ms": itl_ms,
        "spread_ms": 0.5,
        "samples": 30,
    }


CURVE = {
    "schema": "lychee-sgl/speed-curve",
    "version": 1,
    "model": "tiny",
    "plan": {"name": "built-in", "sha256": "00"},
    "device": "a CPU, 2 cores",
    "engine": {"lychee": "0.1.0", "sglang": "0.5.17", "device": "cpu", "dense_below": 1024},
    "date": "2026-11-22",
    "command": "lychee-sgl calibrate",
    "points": [
        point("dense", 1000, 1, 10.0),
        point("dense", 4000, 1, 40.0),
        point("dense", 8000, 1, 80.0),
        point("dense", 1000, 3, 20.0),
        point("dense", 4000, 3, 100.0),
        point(512, 2000, 1, 8.0),
        point(512, 8000, 1, 20.0),
        point(512, 8000, 3, 30.0),
        point(512, 2000, 3, 14.0),
        point(2048, 4000, 1, 18.0),
        point(2048, 8000, 1, 26.0),
    ],
}


def curve(**changes) -> SpeedCurve:
    return SpeedCurve.model_validate({**copy.deepcopy(CURVE), **changes})


@pytest.mark.parametrize(
    ("budget", "context", "batch", "expected"),
    [
        ("dense", 4000, 1, 40),  # measured
        ("dense", 2500, 1, 25),  # half-way in context
        ("dense", 4000, 2, 70),  # half-way in batch: (40 + 100) / 2
        ("dense", 2500, 2, 42.5),  # both: (25 + 60) / 2
        (512, 5000, 1, 14),
        (512, 5000, 2, 18),  # (14 + 22) / 2
        (1024, 8000, 1, 23),  # half-way between 512 and 2048 in the logarithm: (20 + 26) / 2
        ("dense", 9000, 1, 90),  # the last slope, 10 ms for 1000 tokens, goes on
        ("dense", 900, 1, 10),  # below the first: the first
        (8000, 8000, 1, 80),  # a budget that covers the context is dense
        (512, 1000, 1, 10),  # up to dense_below everything is dense
        (1024, 2040, 1, 14.24),  # half-way to 2048, which covers 2040: (8.08 + 20.4) / 2
        (2500, 8000, 1, 26 + 6 * 0.1438562),  # log(2500 / 2048) / log(4) = 0.1438562, beyond the largest budget
        ("dense", 11_000, 1, None),
        ("dense", 700, 1, None),
        ("dense", 4000, 4, None),
        ("dense", 8000, 3, None),  # at batch 3 only 4000 tokens were measured
        (3000, 8000, 1, None),
        (256, 8000, 1, None),
        (2048, 8000, 2, None),  # this budget was measured alone only
    ],
)
def test_times_by_hand(budget, context, batch, expected):
    assert curve().itl_ms(budget, context, batch) == (None if expected is None else pytest.approx(expected, rel=1e-6))


def test_noise_is_levelled():
    noisy = curve(points=[point("dense", 100, 1, 10.0), point("dense", 200, 1, 9.0), point("dense", 300, 1, 12.0)])
    # 10 and 9 fall: both count as 9.5. What rises stays.
    assert [noisy.itl_ms("dense", n, 1) for n in (100, 200, 300)] == [9.5, 9.5, 12.0]


@given(
    st.lists(st.floats(0.1, 1000), min_size=12, max_size=12),
    st.tuples(st.floats(512, 4096), st.floats(512, 4096)),
    st.tuples(st.floats(1, 4), st.floats(1, 4)),
    st.tuples(st.integers(32, 128), st.integers(32, 128)),
)
def test_never_falls(times, contexts, batches, budgets):
    """Whatever was measured, more context, more requests or more budget never take less time."""
    places = [(b, n, r) for b in ("dense", 32, 128) for n in (512, 4096) for r in (1, 4)]
    found = curve(
        engine={**CURVE["engine"], "dense_below": 0},
        points=[point(*place, time) for place, time in zip(places, times, strict=True)],
    )
    small = (min(budgets), min(contexts), min(batches))
    large = (max(budgets), max(contexts), max(batches))
    assert found.itl_ms(*small) <= found.itl_ms(*large) * (1 + 1e-9)
    assert found.itl_ms("dense", *small[1:]) <= found.itl_ms("dense", *large[1:]) * (1 + 1e-9)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(CURVE))
    loaded = SpeedCurve.load(path)
    assert loaded == curve()
    assert loaded.budgets == (512, 2048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version is 2"),
        ({"schema": "x"}, "schema is 'x'"),
        ({"points": []}, "points is []"),
        ({"points": [point("dense", 1, 1, 0)]}, "points.0.itl_ms is 0"),
        ({"points": [point("auto", 1, 1, 1)]}, "is 'auto'"),
        ({"points": [point(5, 9, 1, 1)]}, "there is no dense point"),
        ({"points": [point("dense", 9, 1, 1), point("dense", 9, 1, 2)]}, "('dense', 9, 1) are there twice"),
        ({"more": 1}, "more is 1"),
        ({"engine": {"lychee": "1"}}, "engine.device"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, change, message):
    path = tmp_path / "curve.json"
    path.write_text(json.dumps({**CURVE, **change}))
    with pytest.raises(CurveError) as caught:
        SpeedCurve.load(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(CurveError, match="No such file"):
        SpeedCurve.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_bytes(b'{"schema": \xff')
    with pytest.raises(CurveError, match="no JSON"):
        SpeedCurve.load(tmp_path / "half.json")


def test_differences_from_an_engine():
    same = SparsityInfo.model_validate(INFO)
    assert curve().differences(same) == []
    other = SparsityInfo.model_validate(
        {**INFO, "plan": {**INFO["plan"], "sha256": "11"}, "dense_below": 0, "sglang": "0.5.18"}
    )
    assert curve().differences(other) == ["plan", "dense_below", "sglang"]
