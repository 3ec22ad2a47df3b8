"""Load generators that people measure servers with: SGLang's bench_serving and guidellm."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.scripted_engine import SUMMARY, Script
from tests.gateway.sglang_shapes import DONE, answer, answer_choice, text_chunk, usage_chunk

REQUESTS = 12
EVENTS = [text_chunk("", role="assistant"), *map(text_chunk, "abcd"), text_chunk(finish="stop", lychee=SUMMARY)]
ENVIRON = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


@pytest.fixture
def answering(gateway, engine):
    engine.script = Script(answer=answer(answer_choice("abcd"), lychee=SUMMARY), events=[*EVENTS, usage_chunk(), DONE])
    return gateway


@pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not installed")
def test_bench_serving(answering, engine, tmp_path):
    from lychee_sgl.models.embedded import ensure_unpacked

    tokenizer, out = ensure_unpacked(lambda _: None), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang-oai-chat", "--base-url"]
    command += [answering.server.url, "--model", "tiny", "--tokenizer", str(tokenizer), "--output-file", str(out)]
    command += [
        "--dataset-name",
        "random-ids",
        "--random-input-len",
        "16",
        "--random-output-len",
        "4",
        "--disable-tqdm",
    ]
    command += ["--num-prompts", str(REQUESTS), "--max-concurrency", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRON)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(out.read_text().splitlines()[-1])
    assert result["completed"] == REQUESTS
    assert len(engine.bodies) >= REQUESTS
    assert answering.total("lychee_requests_total", route="/v1/chat/completions", status="200") == len(engine.bodies)


@pytest.mark.skipif(importlib.util.find_spec("guidellm") is None, reason="guidellm is not installed")
def test_guidellm(answering, engine, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt\n" + "".join(f"Where is the key number {n}?\n" for n in range(20)))
    program = shutil.which("guidellm", path=str(Path(sys.executable).parent))
    assert program is not None
    out = tmp_path / "out.json"
    command = [program, "run", "--backend", f"kind=openai_http,target={answering.server.url},model=tiny"]
    command += ["--profile", "kind=synchronous", "--constraint", f"kind=max_requests,count={REQUESTS}"]
    command += ["--data", f"kind=csv_file,path={tmp_path / 'prompts.csv'}", "--output", f"kind=json,path={out}"]
    command += ["--disable-console"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRON, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    totals = json.loads(out.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (REQUESTS, 0)
    assert {body["stream"] for body in engine.bodies} == {True}
