"""Time per token inside SGLang on a GPU: ours against FlashInfer's dense decode, over HTTP, on the same cached prompts.

The lychee engine runs a batch of dense requests as stock SGLang does, with FlashInfer in a CUDA graph of its own; so
both figures of a line come from one process, one memory and one set of cached prompts. A stock engine measured with the
same prompts shows that nothing is lost on the way.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from lychee_sgl.serve.process import Lifeline, Service, ServiceSpec, meaningful_tail
from lychee_sgl.serve.solo import free_port
from lychee_sgl.serve.supervisor import StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SHORT, LONG = 4, 100
"""New tokens of the two generations whose difference is timed."""
START_SECONDS = 400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A batch: for each row its context's length and its budget."""

    contexts: tuple[int, ...]
    budgets: tuple[int | str, ...]

    @classmethod
    def parse(cls, text: str, budget: int) -> Case:
        """Reads `131072x4`, or `1024:dense+131072:4096` for a mixed batch.

        Raises:
            ValueError: the text has another form.
        """
        if ":" not in text:
            length, _, rows = text.partition("x")
            return cls(contexts=(int(length),) * int(rows or 1), budgets=(budget,) * int(rows or 1))
        rows_ = [row.split(":") for row in text.split("+")]
        return cls(
            contexts=tuple(int(length) for length, _ in rows_),
            budgets=tuple(b if b == "dense" else int(b) for _, b in rows_),
        )


def head_plan(config: dict[str, Any], retrieval: int, budget: int, seed: int = 1) -> dict[str, Any]:
    """Makes a plan with so many retrieval heads at random places, layer 0's among them: a shape to time, no quality."""
    layers, heads = config["num_hidden_layers"], config["num_key_value_heads"]
    rest = [(layer, head) for layer in range(1, layers) for head in range(heads)]
    chosen = set(random.Random(seed).sample(rest, retrieval - heads))
    return {
        "schema": "lychee-sgl/head-plan",
        "version": 1,
        "name": f"{config['model_type']}-random-{retrieval}",
        "model": {
            "name": config["model_type"],
            "architecture": config["architectures"][0],
            "num_hidden_layers": layers,
            "num_attention_heads": config["num_attention_heads"],
            "num_key_value_heads": heads,
            "head_dim": config["head_dim"],
        },
        "roles": [
            "".join("R" if layer == 0 or (layer, head) in chosen else "S" for head in range(heads))
            for layer in range(layers)
        ],
        "sources": {},
        "defaults": {
            "budget": budget,
            "mode": "topk",
            "value": None,
            "sinks": 64,
            "recent": 256,
            "auto": {"fraction": 0.125, "min": 512, "max": 4096},
        },
        "provenance": {"method": "random", "seed": seed},
    }


@contextlib.contextmanager
def engine(
    state: Path, *, model: Path, backend: str, args: tuple[str, ...], environ: dict[str, str]
) -> Iterator[tuple[str, float]]:
    """Runs one SGLang server with dummy weights and no tokenizer.

    Yields:
        Its address and the seconds that it took to start.

    Raises:
        StartFailed: it ended, or was not ready in time; the message has the end of its log.
    """
    port = free_port()
    command = (
        sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--load-format", "dummy",
        "--skip-tokenizer-init", "--attention-backend", backend, "--port", str(port), *args,
    )  # fmt: skip
    log = state / f"engine-{backend}.log"
    spec = ServiceSpec(name=backend, command=command, environment=os.environ | environ, log=log, stop_grace=10)
    service = Service(spec, lifeline := Lifeline())
    start = time.monotonic()
    service.start()
    try:
        while True:
            if (status := service.poll()) is not None:
                raise StartFailed(f"the engine ended with {status}:\n" + "\n".join(meaningful_tail(log)))
            if time.monotonic() > start + START_SECONDS:
                raise StartFailed(f"the engine was not ready after {START_SECONDS:.0f} s; see {log}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == httpx.codes.OK:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", time.monotonic() - start
    finally:
        service.stop()
        end = time.monotonic() + 30
        while service.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        lifeline.close()


def prompts(case: Case, vocabulary: int) -> list[list[int]]:
    """Draws a prompt for each row; the same rows always get the same prompts, so that they stay cached."""
    return [
        random.Random(f"{row}-{length}").choices(range(1000, vocabulary - 1000), k=length - LONG)
        for row, length in enumerate(case.contexts)
    ]


def generate(address: str, ids: list[list[int]], budgets: tuple[int | str, ...], tokens: int) -> list[dict[str, Any]]:
    """Generates for a whole batch in one request; gives each row's `meta_info`."""
    body = {
        "input_ids": ids,
        "sampling_params": [
            {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, "custom_params": {"lychee_budget": budget}}
            for budget in budgets
        ],
    }
    response = httpx.post(f"{address}/generate", json=body, timeout=900)
    response.raise_for_status()
    return [answer["meta_info"] for answer in response.json()]


def per_token(address: str, ids: list[list[int]], budgets: tuple[int | str, ...], repeats: int) -> dict[str, Any]:
    """Times a token step: the difference of a long and a short generation on cached prompts, in milliseconds."""
    taken = []
    for _ in range(repeats):
        seconds = {}
        for tokens in (SHORT, LONG):
            start = time.perf_counter()
            generate(address, ids, budgets, tokens)
            seconds[tokens] = time.perf_counter() - start
        taken.append((seconds[LONG] - seconds[SHORT]) / (LONG - SHORT) * 1000)
    return {"median_ms": statistics.median(taken), "least_ms": min(taken), "most_ms": max(taken), "repeats": repeats}


def measure(address: str, case: Case, *, vocabulary: int, repeats: int, sparse: bool) -> dict[str, Any]:
    """Measures a batch dense and, where the engine is ours, at its budgets."""
    ids = prompts(case, vocabulary)
    dense = ("dense",) * len(ids)
    start = time.perf_counter()
    generate(address, ids, dense, 1)
    line: dict[str, Any] = {"prefill_seconds": time.perf_counter() - start}
    generate(address, ids, dense, LONG)
    line["dense"] = per_token(address, ids, dense, repeats)
    if sparse:
        info = generate(address, ids, case.budgets, LONG)
        line["sparse"] = per_token(address, ids, case.budgets, repeats)
        line["speedup"] = line["dense"]["median_ms"] / line["sparse"]["median_ms"]
        steps = [step for row in info for step in row.get("lychee", ()) if step]
        line["attended_fraction"] = sum(s[0] for s in steps) / max(1, sum(s[1] for s in steps))
        recalls = [s[5] for s in steps if s[5] is not None]
        line["recall"] = statistics.fmean(recalls) if recalls else None
    return line


def run(
    state: Path,
    *,
    model: Path,
    cases: dict[str, Case],
    stock_cases: dict[str, dict[str, Case]],
    retrieval: int,
    budget: int,
    engine_args: tuple[str, ...],
    environ: dict[str, str],
    repeats: int,
    say: Callable[[str], None],
    save: Callable[[dict[str, Any]], None],
) -> None:
    """Measures our engine on `cases`, then stock engines, by backend, on `stock_cases`; saves after every batch."""
    config = json.loads((model / "config.json").read_text())
    plan = state / "plan.json"
    plan.write_text(json.dumps(head_plan(config, retrieval, budget)))
    vocabulary = config["vocab_size"]
    record: dict[str, Any] = {"model": config["model_type"], "retrieval_heads": retrieval, "budget": budget}
    record["engine_args"] = list(engine_args)
    ours = {"LYCHEE_HEADS": str(plan)} | environ
    engines = {"lychee": cases} | stock_cases
    for backend, batches in engines.items():
        if not batches:
            continue
        environment = ours if backend == "lychee" else {}
        with engine(state, model=model, backend=backend, args=engine_args, environ=environment) as (address, seconds):
            say(f"{backend} engine up after {seconds:.0f} s")
            lines = record[backend] = {"start_seconds": seconds, "batches": {}}
            for name, case in batches.items():
                line = measure(address, case, vocabulary=vocabulary, repeats=repeats, sparse=backend == "lychee")
                lines["batches"][name] = line
                say(f"{backend} {name}: {json.dumps(line)}")
                save(record)
