"""From the command to the first answer, and what all processes hold after a long one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx

from lychee_sgl.bench.machine import describe, tree_pss
from lychee_sgl.serve.ready import Probe
from lychee_sgl.serve.solo import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

START_SECONDS = 900.0
QUESTION = "What is the capital of France?"
LONG_WORDS = 6800
"""Words of one token each: with the chat template about 7,000 tokens."""


class StartError(RuntimeError):
    """The deployment ended, or was not ready in time."""


@contextlib.contextmanager
def deployment(state: Path) -> Iterator[tuple[int, str]]:
    """Runs `lychee-sgl serve` as a user would, for the time of a block.

    Args:
        state: folder for its logs.

    Yields:
        The launcher's process id and the gateway's address, as soon as it has been started.
    """
    port, engine_port = free_port(), free_port()
    command = [sys.executable, "-P", "-c", "from lychee_sgl.cli import main; main()", "serve"]
    options = ["--port", str(port), "--engine-port", str(engine_port)]
    with (state / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "XDG_STATE_HOME": str(state)},
            start_new_session=True,
        )
        try:
            yield process.pid, f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)


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


def run(state: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Starts a deployment and measures it.

    Args:
        state: folder for logs.
        say: gets a line for each thing begun.

    Returns:
        The record as it is committed.

    Raises:
        StartError: it was not ready in time.
    """
    record: dict[str, Any] = {"kind": "start", **describe()}
    begun = time.perf_counter()
    say("lychee-sgl serve")
    with deployment(state) as (pid, address), contextlib.closing(Probe(f"{address}/readyz")) as ready:
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
