"""From the command to the first answer, and what all processes hold after a long one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from lychee_sgl.bench.machine import describe, tree_pss
from lychee_sgl.serve.ready import Probe
from lychee_sgl.serve.solo import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_SECONDS = 1800.0
QUESTION = "What is the capital of France?"
LONG_WORDS = 6800
"""Words of one token each: with the chat template about 7,000 tokens."""


class StartError(RuntimeError):
    """The deployment ended, or was not ready in time."""


def _clone(state: Path) -> Path:
    """Clones the checkout that this package runs from, as its last commit has it."""
    source = Path(__file__).parents[2]
    clone = state / "clone"
    subprocess.run(["git", "clone", "--quiet", str(source), str(clone)], check=True)
    return clone


@contextlib.contextmanager
def deployment(state: Path, *, fresh: bool) -> Iterator[tuple[int, str]]:
    """Runs `lychee-sgl serve`, or `make serve` in a bare clone, for the time of a block.

    Args:
        state: folder for its logs, and for the clone.
        fresh: clone the project, and start with no environment and no unpacked model.

    Yields:
        The launcher's process id and the gateway's address, as soon as it has been started.
    """
    port, engine_port = free_port(), free_port()
    environ = {**os.environ, "XDG_STATE_HOME": str(state)}
    command = [sys.executable, "-P", "-c", "from lychee_sgl.cli import main; main()", "serve", "--port", str(port)]
    command += ["--engine-port", str(engine_port)]
    if fresh:
        command = ["make", "-C", str(_clone(state)), "serve", f"PORT={port}", f"ARGS=--engine-port {engine_port}"]
        # packages come out of uv's cache where it has them; the model is unpacked anew
        environ = {**environ, "UV_CACHE_DIR": _uv_cache(), "XDG_CACHE_HOME": str(state / "cache")}
    with (state / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environ,
            start_new_session=True,
        )
        try:
            yield process.pid, f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)


def _uv_cache() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return os.environ.get("UV_CACHE_DIR") or str(Path(base) / "uv")


def ask(address: str, text: str, tokens: int, budget: int | str | None = None) -> dict[str, Any]:
    """Asks through the gateway; not streamed."""
    body: dict[str, Any] = {"model": "SmolLM2-135M-Instruct", "max_tokens": tokens, "temperature": 0}
    body["messages"] = [{"role": "user", "content": text}]
    if budget is not None:
        body["lychee"] = {"budget": budget}
    response = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=900)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def run(state: Path, say: Callable[[str], None], *, fresh: bool) -> dict[str, Any]:
    """Starts a deployment and measures it.

    Args:
        state: folder for logs.
        fresh: from a bare clone.
        say: gets a line for each thing begun.

    Returns:
        The record as it is committed.

    Raises:
        StartError: it was not ready in time.
    """
    record: dict[str, Any] = {"kind": "start", "fresh": fresh, **describe()}
    say("make serve in a bare clone" if fresh else "lychee-sgl serve")
    begun = time.perf_counter()
    with deployment(state, fresh=fresh) as (pid, address), contextlib.closing(Probe(f"{address}/readyz")) as ready:
        while not ready():
            if time.perf_counter() - begun > START_SECONDS:
                raise StartError(f"not ready after {START_SECONDS:.0f} s; see {state / 'serve.log'}")
            time.sleep(0.2)
        record["ready_seconds"] = time.perf_counter() - begun
        answer = ask(address, QUESTION, 32)
        record["first_answer_seconds"] = time.perf_counter() - begun
        record["answer"] = answer["choices"][0]["message"]["content"]
        record["pss_gib_ready"] = tree_pss(pid) / 2**30
        say("a long prompt, dense and at 512")
        for budget in ("dense", 512):
            long = ask(address, "stone " * LONG_WORDS + QUESTION, 32, budget)
        record["long_context_tokens"] = long["lychee"]["context_tokens"]
        record["pss_gib_after_long"] = tree_pss(pid) / 2**30
    return record
