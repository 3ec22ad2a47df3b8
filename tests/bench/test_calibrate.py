"""Calibration against a paced engine: the curve says what the engine did, and goes on where it was interrupted."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from typer.testing import CliRunner

from lychee_sgl.bench import curve
from lychee_sgl.bench.calibrate import app
from tests.gateway.scripted_engine import INFO, ThreadedServer, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request

DENSE_MS, SPARSE_MS = 10.0, 5.0


class PacedEngine:
    """Streams tokens at a known pace; says of each step how many streams were open."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {**INFO, "dense_below": 100}
        self.asked: list[tuple[int, int, int | str]] = []
        self.running = 0
        self.most_together = 16
        self.key: str | None = None
        self.app = Starlette(
            routes=[
                Route("/lychee/info", lambda _: JSONResponse(self.info)),
                Route("/server_info", self._server_info),
                Route("/generate", self._generate, methods=["POST"]),
            ]
        )

    async def _server_info(self, request: Request) -> JSONResponse:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, status_code=401)
        states = [{"effective_max_running_requests_per_dp": 16}]
        return JSONResponse({"version": "0.5.17", "max_total_num_tokens": 2000, "internal_states": states})

    async def _generate(self, request: Request) -> StreamingResponse:
        body = await request.json()
        params = body["sampling_params"]
        tokens, budget = params["max_new_tokens"], params["custom_params"]["lychee_budget"]
        self.asked.append((len(body["input_ids"]), tokens, budget))
        return StreamingResponse(self._tokens(tokens, budget), media_type="text/event-stream")

    async def _tokens(self, tokens: int, budget: int | str) -> AsyncIterator[str]:
        self.running += 1
        steps: list[Any] = [None]
        try:
            for count in range(1, tokens + 1):
                meta = {"completion_tokens": count, "lychee": steps}
                yield f"data: {json.dumps({'meta_info': meta})}\n\n"
                await asyncio.sleep((DENSE_MS if budget == "dense" else SPARSE_MS) / 1000)
                steps = [*steps, [1, 1, 0, 1, 1, None, min(self.running, self.most_together)]]
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1


@pytest.fixture
def paced() -> PacedEngine:
    return PacedEngine()


@pytest.fixture
def address(paced: PacedEngine) -> Iterator[str]:
    with serving(ThreadedServer(paced.app)) as server:
        yield server.url


def calibrate(address: str, out: Any, *more: str) -> Any:
    options = ["--url", address, "--out", str(out), "--budgets", "150", "--batches", "1,2", "--rounds", "1", *more]
    return CliRunner().invoke(app, options)


def test_a_curve_is_what_the_engine_did(paced, address, tmp_path):
    from lychee_server.curve import SpeedCurve

    out = tmp_path / "curve.json"
    result = calibrate(address, out, "--contexts", "100,600")
    assert result.exit_code == 0, result.output
    found = SpeedCurve.load(out)
    assert found.model == "tiny"
    assert found.plan.sha256 == "00"
    assert found.engine.model_dump() == {"lychee": "0.1.0", "sglang": "0.5.17", "device": "cpu", "dense_below": 100}
    assert "cores" in found.device
    # 150 is dense up to 150 tokens: its first point is at 150 + 36 / 2 + 1
    assert {(p.budget, p.context, p.batch) for p in found.points} == {
        *[("dense", context, batch) for context in (100, 169, 600) for batch in (1, 2)],
        *[(150, context, batch) for context in (169, 600) for batch in (1, 2)],
    }
    for point in found.points:
        pause = DENSE_MS if point.budget == "dense" else SPARSE_MS
        assert pause * 0.75 <= point.itl_ms < pause + 20  # tokens of a busy machine come bundled, but none early
        assert point.samples >= point.batch
    assert {n for n, tokens, _ in paced.asked if tokens == curve.TOKENS} == {100 - 18, 169 - 18, 600 - 18}


def test_a_second_run_measures_only_what_is_missing(paced, address, tmp_path):
    out = tmp_path / "curve.json"
    assert calibrate(address, out, "--contexts", "100").exit_code == 0
    before = json.loads(out.read_text())["points"]
    paced.asked.clear()
    assert calibrate(address, out, "--contexts", "100,300").exit_code == 0
    after = json.loads(out.read_text())["points"]
    assert after[: len(before)] == before
    assert len(after) == len(before) + 4
    assert {length for length, _, _ in paced.asked} == {300 - 18}


def test_what_was_measured_before_a_failure_is_kept(paced, address, tmp_path):
    out = tmp_path / "curve.json"
    paced.most_together = 1
    result = calibrate(address, out, "--contexts", "100")
    assert result.exit_code == 1
    assert "did not run 2 requests of 100 tokens together" in result.output.replace("\n", " ")
    assert [(p["context"], p["batch"]) for p in json.loads(out.read_text())["points"]] == [(100, 1)]


def test_another_engine_is_not_mixed_in(paced, address, tmp_path):
    out = tmp_path / "curve.json"
    assert calibrate(address, out, "--contexts", "100").exit_code == 0
    paced.info = {**paced.info, "plan": {**INFO["plan"], "sha256": "11"}}
    result = calibrate(address, out, "--contexts", "100")
    assert result.exit_code == 1
    assert "other plan" in result.output
    assert calibrate(address, out, "--contexts", "100", "--fresh").exit_code == 0
    assert json.loads(out.read_text())["plan"]["sha256"] == "11"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contexts", "9000"], None),
        (["--contexts", "x"], "--contexts is 'x'"),
        (["--batches", "0"], "--batches is '0'"),
    ],
)
def test_options_out_of_range(address, tmp_path, options, message):
    result = calibrate(address, tmp_path / "curve.json", *options)
    if message is None:  # left out; the budget's own first point is measured
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert message in result.output


def test_no_engine_and_no_curve(address, tmp_path):
    out = tmp_path / "curve.json"
    out.write_text("[]")
    result = calibrate(address, out)
    assert result.exit_code == 1
    assert "is no speed curve" in result.output
    with serving(ThreadedServer(Starlette())) as bare:
        result = calibrate(bare.url, tmp_path / "other.json")
    assert result.exit_code == 1
    assert "not the gateway's" in result.output.replace("\n", " ")


def test_an_engine_with_a_key(paced, address, tmp_path, monkeypatch):
    paced.key = "sesame"
    result = calibrate(address, tmp_path / "curve.json", "--contexts", "100")
    assert result.exit_code == 1
    assert "--api-key" in result.output.replace("\n", " ")
    monkeypatch.setattr("sys.argv", ["lychee-sgl", "calibrate", "--api-key", "sesame"])
    result = calibrate(address, tmp_path / "curve.json", "--contexts", "100", "--api-key", "sesame")
    assert result.exit_code == 0
    assert "sesame" not in (tmp_path / "curve.json").read_text()


def test_samples_by_hand():
    """The batch is two from the second to the 38th token; tokens from the fourth on count: two runs of sixteen."""
    moments = tuple((0.01 * count, count) for count in range(1, 51))
    batches = (None, *[2] * 37, *[1] * 12)
    arrivals = curve.Arrivals(moments=moments, batches=batches)
    assert arrivals.samples(2) == pytest.approx([0.01, 0.01])
    assert arrivals.samples(3) == []
    # Tokens that come by fours: the pace is the same
    bundled = curve.Arrivals(moments=tuple(m for m in moments if m[1] % 4 == 0), batches=batches)
    assert bundled.samples(2) == pytest.approx([0.01, 0.01])
    # One run only, where the batch is smaller after the 30th token
    assert curve.Arrivals(moments=moments, batches=(None, *[2] * 29, *[1] * 20)).samples(2) == pytest.approx([0.01])
