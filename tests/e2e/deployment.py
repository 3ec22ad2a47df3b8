"""One real deployment, as a user starts it: `lychee-sgl serve` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL = "SmolLM2-135M-Instruct"
START_SECONDS = 600.0
STOP_SECONDS = 60.0


def wait_for(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Look until a condition holds, five times a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


def _two_free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def total(samples: Counter[str], name: str) -> float:
    """Adds a metric up over all of its labels."""
    return sum(value for key, value in samples.items() if key.split("{")[0] == name)


class Deployment:
    """Launcher, keepers, engine and gateway; sparse from 64 tokens of context on, every decode step audited."""

    def __init__(self, state: Path) -> None:
        self.port, self.engine_port = _two_free_ports()
        self.url = f"http://127.0.0.1:{self.port}"
        self.engine_url = f"http://127.0.0.1:{self.engine_port}"
        self.output = state / "output"
        command = [sys.executable, "-P", "-c", "from lychee_sgl.cli import main; main()", "serve"]
        command += ["--port", str(self.port), "--engine-port", str(self.engine_port)]
        command += ["--dense-below", "64", "--recall-every", "1"]
        environment = {**os.environ, "XDG_STATE_HOME": str(state), "CUDA_VISIBLE_DEVICES": ""}
        environment["LYCHEE_MEMORY_BANK"] = str(state / "memory.sqlite")
        with self.output.open("wb") as output:
            self.launcher = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        self.http = httpx.Client(base_url=self.url, timeout=300, trust_env=False)

    def wait_ready(self) -> None:
        """Wait for the launcher's banner."""
        self.wait_for_line(r"^ready after \d+ s$", START_SECONDS)
        assert self.http.get("/readyz").status_code == 200

    def wait_for_line(self, pattern: str, seconds: float, times: int = 1) -> None:
        """Wait until the launcher has said something so often; fails at once when it has ended."""

        def said() -> bool:
            text = self.output.read_text()
            found = len(re.findall(pattern, text, re.MULTILINE)) >= times
            assert found or self.launcher.poll() is None, text
            return found

        wait_for(said, f"{pattern} in the launcher's output: {self.output.read_text()}", seconds)

    def family(self) -> set[psutil.Process]:
        """Every process that descends from the launcher."""
        return set(psutil.Process(self.launcher.pid).children(recursive=True))

    def engine_family(self) -> set[psutil.Process]:
        """The engine's main process and all that it started."""
        main = self.engine()
        return {main, *main.children(recursive=True)}

    def engine(self) -> psutil.Process:
        """The process that runs `sglang.launch_server`."""
        return self._one_that_runs("sglang.launch_server")

    def gateway(self) -> psutil.Process:
        """The process that runs `lychee_server`."""
        return self._one_that_runs("lychee_server")

    def _one_that_runs(self, module: str) -> psutil.Process:
        (found,) = [process for process in self.family() if _runs(process, "-m", module)]
        return found

    def ask(self, text: str, *, lychee: dict[str, object] | None = None, **fields: object) -> httpx.Response:
        """Send one chat, greedily, and wait for its answer."""
        return self.http.post("/v1/chat/completions", json=chat(text, lychee=lychee, **fields))

    def gateway_samples(self) -> Counter[str]:
        """The gateway's metrics by name and labels, as Prometheus writes them."""
        return _samples(self.http.get("/metrics").text)

    def engine_gauge(self, name: str) -> float:
        """One of SGLang's gauges, over all of its labels."""
        text = httpx.get(f"{self.engine_url}/metrics", timeout=30, trust_env=False).text
        return total(_samples(text), name)

    def terminate(self) -> int:
        """Ask the launcher to stop; its exit status."""
        self.launcher.send_signal(signal.SIGTERM)
        return self.launcher.wait(timeout=STOP_SECONDS)

    def clean_up(self) -> None:
        """End everything, whatever happened before."""
        self.http.close()
        if self.launcher.poll() is None:
            family = self.family()
            self.launcher.kill()  # the keepers notice and end the rest
            self.launcher.wait()
            psutil.wait_procs(family, timeout=20)


def chat(text: str, *, lychee: dict[str, object] | None = None, **fields: object) -> dict[str, object]:
    """The body of a greedy chat with one message."""
    asked = {} if lychee is None else {"lychee": lychee}
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "max_tokens": 24, "temperature": 0, **asked, **fields}


def _runs(process: psutil.Process, *words: str) -> bool:
    try:
        line = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    # the keeper has the same words, behind its own
    return all(word in line for word in words) and "lychee_sgl.serve.keeper" not in line


def _samples(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] += sample.value  # type: ignore[assignment]
    return found
