"""What `lychee-sgl bench gpu` measures with, where there is no GPU: its plans, its judgement, and how it goes on."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from lychee_sgl.bench import gpu, gpu_cli, gpu_profile, gpu_tokens
from lychee_sgl.bench.cli import app
from lychee_sgl.bench.near_ties import first_difference, near_tie, noise
from lychee_sgl.heads.plan import HeadPlan
from lychee_sgl.heads.ranks import allowed_sizes, check_plan, pace, retrieval_by_rank
from lychee_sgl.serve.supervisor import StartFailed

ROOT = Path(__file__).parents[2]
LLAMA = json.loads((Path(gpu.__file__).parent / "shapes" / "llama-3.1-8b" / "config.json").read_text())


def test_plans_for_two_ranks() -> None:
    plans = {name: gpu.head_plan(LLAMA, 32, 4096, placement=name, tp=2) for name in gpu_cli.PLACEMENTS}
    assert {plan.retrieval_count for plan in plans.values()} == {32}
    assert all(2 in allowed_sizes(plan) for plan in plans.values())
    assert pace(plans["balanced"], 2) == 1
    assert sum(second for _, second in retrieval_by_rank(plans["unbalanced"], 2)) == 4  # layer 0's
    # layer 0 has 4 on each rank, the first rank 24 more: 28 of a mean of 16
    assert pace(plans["unbalanced"], 2) == 28 / 16
    assert 1 < pace(plans["random"], 2) < 28 / 16


def answer(tokens: list[int], *best: dict[int, float]) -> gpu_tokens.Answer:
    return gpu_tokens.Answer(tokens, list(best))


def test_near_ties_by_hand() -> None:
    one = answer([5, 7], {5: -0.1, 6: -2.1}, {7: -0.5, 8: -0.6})
    other = answer([5, 8], {5: -0.1, 6: -2.0}, {8: -0.5, 7: -0.52})
    far = answer([6, 7], {6: -0.1, 5: -2.0}, {7: -0.5, 8: -0.6})
    assert first_difference(one, one) is None
    assert first_difference(one, other) == 1
    # the gap 5-6 is 2.0 and 1.9, the gap 7-8 0.1 and -0.02
    assert noise(one, other) == pytest.approx(0.12)
    assert near_tie(one, other, 0.12) == (True, pytest.approx(0.1))
    assert near_tie(one, far, 0.12) == (False, pytest.approx(2.0))
    told = gpu_tokens.judge([one, one, one], [one, other, far], allowed=0.12)
    assert (told["answers"], told["identical"], told["near_ties"]) == (3, 1, 1)
    assert told["gaps"] == [0.1, 2.0]


def test_the_random_model_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        gpu_tokens.write_model(tmp_path / name, gpu_tokens.TINY)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["num_key_value_heads"] == 2


def test_one_of_the_gpus_that_may_be_used() -> None:
    assert [gpu_tokens.visible_gpu({}, n) for n in (0, 1)] == ["0", "1"]
    assert [gpu_tokens.visible_gpu({"CUDA_VISIBLE_DEVICES": "2, 3"}, n) for n in (0, 1)] == ["2", "3"]


def test_the_command_for_two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What DESIGN.md says to run is read as it is meant, and nothing of it can only fail on the GPUs."""
    (block,) = re.findall(r"^```\n(lychee-sgl bench gpu .*?)^```", (ROOT / "DESIGN.md").read_text(), re.M | re.DOTALL)
    found: list[gpu_cli.Wanted] = []
    monkeypatch.setattr(gpu_cli, "measure", lambda wanted, *_, **__: found.append(wanted))
    monkeypatch.chdir(ROOT)
    told = CliRunner().invoke(app, shlex.split(block.replace("\\\n", " "))[2:])
    assert told.exit_code == 0, told.output
    (wanted,) = found
    assert (wanted.tp, wanted.placements, wanted.tokens, wanted.profiled) == (2, ("balanced", "unbalanced"), 12, True)
    # the bar's batches, of which one GPU has a speedup, and which fit graphs and window
    assert list(wanted.cases) == list(wanted.stock["flashinfer"]) == ["131072x4", "65536x8"]
    assert wanted.against is not None
    assert wanted.cases.keys() <= gpu_cli._one_gpu(wanted.against).keys()
    words = " ".join(wanted.engine_args)
    sizes = [int(size) for size in re.findall(r"decode ([\d ]+) ", words)[0].split()]
    window = int(re.findall(r"context-length (\d+)", words)[0])
    for case in wanted.cases.values():
        assert len(case.contexts) in sizes
        assert max(case.contexts) < window
    config = json.loads((wanted.model / "config.json").read_text())
    for placement in wanted.placements:
        path = tmp_path / f"{placement}.json"
        gpu.head_plan(config, wanted.retrieval, wanted.budget, placement=placement, tp=2).save(path)
        check_plan(HeadPlan.load(path), 2)
    # the model of the comparison has a plan for two ranks and for one
    sizes_ = gpu_tokens.Sizes()
    plan = gpu.head_plan(sizes_.config(), sizes_.layers * sizes_.kv_heads // 3, 512, placement="balanced", tp=2)
    assert {1, 2} <= set(allowed_sizes(plan))
    assert pace(plan, 2) == 1


def test_a_run_that_broke_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are stood in for: there is no GPU to start them on."""
    started, measured = [], []

    @contextlib.contextmanager
    def engine(state: Path, **wanted: Any):
        started.append((wanted["environ"]["LYCHEE_HEADS"].rsplit("/", 1)[1], wanted["tp"]))
        yield "address", 1.0

    def measure(address: str, case: gpu.Case, **_: Any) -> dict[str, Any]:
        measured.append(case.contexts)
        if len(measured) == 3:
            raise OSError("the machine is gone")
        return {"speedup": 2.0}

    monkeypatch.setattr(gpu, "engine", engine)
    monkeypatch.setattr(gpu, "measure", measure)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "one.json").write_text(json.dumps({"lychee": {"batches": {"100x2": {"speedup": 2.5}}}}))
    out = tmp_path / "out.json"
    words = [
        "gpu", "--model", str(tmp_path), "--out", str(out), "--cases", "100x2,200x1", "--tp", "2",
        "--plans", "balanced,unbalanced", "--against", str(tmp_path / "one.json"),
    ]  # fmt: skip
    assert CliRunner().invoke(app, words).exit_code == 1
    assert list(json.loads(out.read_text())["lychee"]["batches"]) == ["100x2", "200x1"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert started == [("lychee.json", 2), ("lychee_unbalanced.json", 2), ("lychee_unbalanced.json", 2)]
    assert measured == [(100, 100), (200,), (100, 100), (100, 100), (200,)]
    record = json.loads(out.read_text())
    assert record["lychee_unbalanced"]["pace"] == 28 / 16
    assert record["kept"] == {"lychee": {"100x2": 0.8}, "lychee_unbalanced": {"100x2": 0.8}}
    assert CliRunner().invoke(app, words).exit_code == 0
    assert len(started) == 3  # all was there
    assert CliRunner().invoke(app, [*words, "--plans", "best"]).exit_code == 1
    answer = CliRunner().invoke(app, [*words, "--against", str(tmp_path / "none.json")])
    assert answer.exit_code == 1
    assert "allowed: a JSON of `bench gpu` on one GPU" in answer.output


def test_an_engine_that_fails_costs_its_own_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first engine does not start, the token comparison does not either: what lies between is kept."""

    @contextlib.contextmanager
    def engine(state: Path, **wanted: Any):
        if wanted["environ"]["LYCHEE_HEADS"].endswith("lychee.json"):
            raise StartFailed("no memory")
        yield "address", 1.0

    def tokens(*_: Any, **__: Any) -> dict[str, Any]:
        raise httpx.ReadTimeout("silent")

    def no_trace(*_: Any) -> list[dict[str, Any]]:
        raise gpu_profile.ProfileFailed("no trace")

    monkeypatch.setattr(gpu, "engine", engine)
    monkeypatch.setattr(gpu, "measure", lambda *_, **__: {"speedup": 2.0})
    monkeypatch.setattr(gpu, "profile", no_trace)
    monkeypatch.setattr(gpu_tokens, "run", tokens)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    out = tmp_path / "out.json"
    words = ["gpu", "--model", str(tmp_path), "--out", str(out), "--cases", "100x2", "--tp", "2", "--tokens", "3"]
    told = CliRunner().invoke(app, [*words, "--plans", "balanced,unbalanced", "--profile"])
    assert told.exit_code == 1
    assert "lychee: no memory; lychee_unbalanced: no trace; tokens: silent" in " ".join(told.output.split())
    record = json.loads(out.read_text())
    assert "lychee" not in record
    assert record["lychee_unbalanced"]["batches"] == {"100x2": {"speedup": 2.0}}


def test_a_trace_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def event(name: str, ts: float, dur: float, cat: str = "kernel") -> dict[str, Any]:
        return {"name": name, "cat": cat, "ts": ts, "dur": dur, "ph": "X"}

    events = [
        event("cudaGraphLaunch", 0, 9000, cat="cuda_runtime"),
        event("cudaGraphLaunch", 9000, 9, cat="cuda_runtime"),
        event("attend_kernel", 1000, 1000),
        event("count_scores_kernel", 1500, 1000),  # beside the attention
        event("nvjet_hsh_128x64", 4000, 500),
        event("void sglang::cross_device_reduce_1stage<2>", 5000, 200),
        event("Memcpy DtoH", 5200, 100, cat="gpu_memcpy"),
        {"name": "process_name", "ph": "M"},
    ]
    expected = {
        "steps": 2,
        "span_ms": 2.15,
        "busy_ms": 1.15,
        "groups_ms": {"all-reduce": 0.1, "attention": 0.5, "selection": 0.5, "matrices": 0.25, "other": 0.05},
    }
    assert gpu_profile.digest(events) == expected
    assert gpu_profile.digest([])["span_ms"] == 0
    with gzip.open(tmp_path / "trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    assert gpu_profile._events(tmp_path / "trace.json.gz") == events
    monkeypatch.setattr(gpu_profile, "WRITE_SECONDS", 0.0)
    (tmp_path / "cut.gz").write_bytes((tmp_path / "trace.json.gz").read_bytes()[:-20])
    for name in ("cut.gz", "none.gz"):
        with pytest.raises(gpu_profile.ProfileFailed, match=f"{name} cannot be read"):
            gpu_profile._events(tmp_path / name)


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "all-reduce"),
        ("BatchDecodeWithPagedKVCacheKernel", "attention"),
        ("merge_kernel", "attention"),
        ("compact_kernel", "selection"),
        ("cutlass_80_tensorop_bf16_s16816gemm", "matrices"),
        ("_snapshot_kernel", "other"),
    ],
)
def test_kernels_by_what_they_are_for(kernel: str, group: str) -> None:
    assert gpu_profile.group_of(kernel) == group
