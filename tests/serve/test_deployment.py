"""The whole of it once: launcher, SGLang on the embedded model, gateway."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

START_SECONDS = 400


@pytest.mark.engine
@pytest.mark.timeout(2 * START_SECONDS + 120)
def test_serves_restarts_a_killed_engine_and_leaves_nothing(tmp_path: Path, free_ports: tuple[int, int]) -> None:
    port, engine_port = free_ports
    command = [sys.executable, "-P", "-c", "from lychee_sgl.cli import main; main()", "serve"]
    command += ["--port", str(port), "--engine-port", str(engine_port)]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    output = tmp_path / "output"
    with output.open("wb") as stream:
        launcher = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    family: set[psutil.Process] = set()
    try:
        wait_for_line(launcher, output, r"^ready after \d+ s$")
        family |= set(psutil.Process(launcher.pid).children(recursive=True))
        assert len(family) >= 6  # two keepers, gateway, engine, scheduler, detokenizer
        assert "Paris" in ask(port)

        scheduler = next(process for process in family if "scheduler" in process.name())
        scheduler.kill()
        wait_for_line(launcher, output, r"^the engine .*; starting it again in 1 s")
        wait_for_status(port, "readyz", 503)
        wait_for_status(port, "livez", 200)
        wait_for_line(launcher, output, r"^ready again after \d+ s$")
        family |= set(psutil.Process(launcher.pid).children(recursive=True))
        assert "Paris" in ask(port)

        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(timeout=60) == 0
        assert output.read_text().splitlines()[-1] == "stopped"
        _, left = psutil.wait_procs(family, timeout=1)
        assert left == []
    finally:
        launcher.kill()
        launcher.wait()
        psutil.wait_procs(family, timeout=10)


def wait_for_line(launcher: subprocess.Popen[bytes], output: Path, pattern: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not re.search(pattern, output.read_text(), re.MULTILINE):
        assert launcher.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)


def wait_for_status(port: int, path: str, status: int) -> None:
    deadline = time.monotonic() + 5  # the gateway looks at the engine once a second
    while httpx.get(f"http://127.0.0.1:{port}/{path}", trust_env=False).status_code != status:
        assert time.monotonic() < deadline, f"/{path} never answers {status}"
        time.sleep(0.1)


def ask(port: int) -> str:
    body = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 24,
        "temperature": 0,
    }
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "SmolLM2-135M-Instruct"
    return str(answer.json()["choices"][0]["message"]["content"])
