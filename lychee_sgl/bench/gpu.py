"""Time per token inside SGLang on a GPU: ours against FlashInfer's dense decode, over HTTP, on the same cached prompts.

The lychee engine runs a batch of dense requests as stock SGLang does, with FlashInfer in a CUDA graph of its own; so
both figures of a line come from one process, one memory and one set of cached prompts. A stock engine measured with the
same prompts shows that nothing is lost on the way. On several ranks the same is measured for plans whose retrieval
heads lie on the ranks in different ways.
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

from lychee_sgl.bench.gpu_profile import PLAIN, ProfileFailed, profile
from lychee_sgl.heads.plan import HeadPlan, ModelShape, PlanDefaults
from lychee_sgl.heads.ranks import pace, rank_heads
from lychee_sgl.heads.shard import shard
from lychee_sgl.serve.config import shared_cores
from lychee_sgl.serve.preflight import accelerators
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


def head_plan(
    config: dict[str, Any], retrieval: int, budget: int, *, placement: str = "random", tp: int = 1, seed: int = 1
) -> HeadPlan:
    """Makes a plan with so many retrieval heads, layer 0's among them: a shape to time, no quality.

    Args:
        config: the model's `config.json`.
        retrieval: retrieval heads.
        budget: the plan's default.
        placement: `random` places; `balanced`, moved so that every rank has as many in each layer; `unbalanced`, all
            but layer 0's at random places of the first rank.
        tp: ranks.
        seed: of the places.
    """
    shape = ModelShape.from_config(config, name=config["model_type"])
    layers, heads = shape.num_hidden_layers, shape.num_key_value_heads
    where = rank_heads(heads, tp, 0) if placement == "unbalanced" else range(heads)
    rest = [(layer, head) for layer in range(1, layers) for head in where]
    chosen = set(random.Random(seed).sample(rest, retrieval - heads))
    plan = HeadPlan(
        name=f"{config['model_type']}-random-{retrieval}",
        model=shape,
        roles=tuple(
            "".join("R" if layer == 0 or (layer, head) in chosen else "S" for head in range(heads))
            for layer in range(layers)
        ),
        defaults=PlanDefaults(budget=budget),
        provenance={"method": "random", "seed": seed, "placement": placement},
    )
    return shard(plan, tp).plan if placement == "balanced" else plan


@contextlib.contextmanager
def engine(
    state: Path,
    *,
    model: Path,
    backend: str,
    args: tuple[str, ...],
    environ: dict[str, str],
    tp: int = 1,
    weights: str = "dummy",
) -> Iterator[tuple[str, float]]:
    """Runs one SGLang server without a tokenizer.

    Args:
        state: folder for its log.
        model: folder of the model.
        backend: SGLang's attention backend.
        args: further arguments of SGLang.
        environ: further environment.
        tp: tensor-parallel ranks.
        weights: SGLang's load format.

    Yields:
        Its address and the seconds that it took to start.

    Raises:
        StartFailed: it ended, or was not ready in time; the message has the end of its log.
    """
    port = free_port()
    command = (
        sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--load-format", weights,
        "--skip-tokenizer-init", "--attention-backend", backend, "--port", str(port), "--tp-size", str(tp), *args,
    )  # fmt: skip
    if not accelerators(os.environ | environ):
        environ = {
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            **(shared_cores(tp) if tp > 1 else {}),
        } | environ
    log = state / f"engine-{backend}-tp{tp}.log"
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
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, **PLAIN).status_code == httpx.codes.OK:
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


def batch_body(ids: list[list[int]], budgets: tuple[int | str, ...], tokens: int) -> dict[str, Any]:
    """Gives the body of `/generate` for a whole batch."""
    return {
        "input_ids": ids,
        "sampling_params": [
            {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, "custom_params": {"lychee_budget": budget}}
            for budget in budgets
        ],
    }


def generate(address: str, ids: list[list[int]], budgets: tuple[int | str, ...], tokens: int) -> list[dict[str, Any]]:
    """Generates for a whole batch in one request; gives each row's `meta_info`."""
    response = httpx.post(f"{address}/generate", json=batch_body(ids, budgets, tokens), timeout=900, **PLAIN)
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


def profiles(address: str, case: Case, *, vocabulary: int, sparse: bool, traces: Path, tp: int) -> dict[str, Any]:
    """Says where the time of a batch's token steps goes, dense and at its budgets; `traces` is the traces' folder."""
    ids = prompts(case, vocabulary)
    ways: dict[str, tuple[int | str, ...]] = {"dense": ("dense",) * len(ids)}
    ways |= {"sparse": case.budgets} if sparse else {}
    return {way: profile(address, batch_body(ids, budgets, LONG), traces, tp) for way, budgets in ways.items()}


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
    tp: int = 1,
    placements: tuple[str, ...] = ("random",),
    profiled: bool = False,
    done: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Measures our engine on `cases`, then stock engines, by backend, on `stock_cases`; saves after every batch.

    An engine that fails costs its own batches, not those of the others.

    Args:
        state: folder for logs, plans and traces.
        model: folder with a `config.json`.
        cases: batches for ours.
        stock_cases: batches for stock engines, by backend.
        retrieval: retrieval heads of the plans.
        budget: of the plans.
        engine_args: further arguments of SGLang.
        environ: further environment of our engines.
        repeats: how often a batch is timed.
        say: told of every line.
        save: gets the record after every batch.
        tp: tensor-parallel ranks.
        placements: plans for ours, as in `head_plan`: an engine for each; the first is called `lychee` in the record,
            the others `lychee_<placement>`.
        profiled: say for every batch where the time goes.
        done: the record of a run that broke off; what it has is not measured again.

    Returns:
        The record, and what failed.
    """
    config = json.loads((model / "config.json").read_text())
    settings: dict[str, Any] = {"model": config["model_type"], "retrieval_heads": retrieval, "budget": budget}
    settings |= {"engine_args": list(engine_args), "tp": tp, "repeats": repeats}
    record = done if done and {key: done.get(key) for key in settings} == settings else settings
    ours = {"lychee" if i == 0 else f"lychee_{name}": name for i, name in enumerate(placements)}
    failed = []
    for key, batches in (dict.fromkeys(ours, cases) | stock_cases).items():
        missing = {name: case for name, case in batches.items() if name not in record.get(key, {}).get("batches", {})}
        if not missing:
            continue
        environment, about = {}, {}
        if key in ours:
            plan = head_plan(config, retrieval, budget, placement=ours[key], tp=tp)
            plan.save(state / f"{key}.json")
            environment = {"LYCHEE_HEADS": str(state / f"{key}.json")} | environ
            about = {"placement": ours[key], "pace": pace(plan, tp)}
        backend = "lychee" if key in ours else key
        try:
            with engine(state, model=model, backend=backend, args=engine_args, environ=environment, tp=tp) as running:
                address, seconds = running
                say(f"{key} engine up after {seconds:.0f} s")
                lines = record.setdefault(key, {"batches": {}}) | about | {"start_seconds": seconds}
                record[key] = lines
                about_model = {"vocabulary": config["vocab_size"], "sparse": key in ours}
                for name, case in missing.items():
                    lines["batches"][name] = measure(address, case, repeats=repeats, **about_model)
                    say(f"{key} {name}: {json.dumps(lines['batches'][name])}")
                    save(record)
                for name, case in missing.items() if profiled else ():  # last: a profiler can end an engine
                    lines["batches"][name]["profile"] = profiles(address, case, traces=state, tp=tp, **about_model)
                    save(record)
        except (StartFailed, ProfileFailed, httpx.HTTPError) as error:
            failed.append(f"{key}: {error}")
            say(failed[-1])
    return record, failed
