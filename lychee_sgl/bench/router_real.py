"""The gateway and SGLang's router before two engines with a model, one of which dies under load and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from lychee_sgl.bench.gateway_mix import metrics_of
from lychee_sgl.bench.gateway_parts import DEPLOYED, Child, GatewayBenchError, client, router
from lychee_sgl.bench.machine import describe
from lychee_sgl.bench.router_alone import ask_alone, gap_at_difference, own_noise
from lychee_sgl.bench.router_client import Heard, converse, mismatches, slipped, told
from lychee_sgl.bench.router_engines import Engine
from lychee_sgl.bench.router_requests import CHAT, mix
from lychee_sgl.bench.router_sums import Run, engine_counts, labels_of, problems, replica_counts, statuses
from lychee_sgl.models.embedded import MODEL_NAME, ensure_unpacked
from lychee_sgl.serve.solo import solo_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import aiohttp

    from lychee_sgl.bench.router_requests import Asked

    Say = Callable[[str], None]

ENGINES = 2
SAMPLE = 48
"""Answers that are asked again alone though they begin with their number."""
SETTLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of a run.

    Attributes:
        requests: how many.
        at_once: clients.
        limit: seconds after which a request counts as hung.
        seed: of the mix.
    """

    requests: int
    at_once: int = 32
    limit: float = 300.0
    seed: int = 0


@contextlib.contextmanager
def _stack(state: Path) -> Iterator[tuple[Child, Child, list[Engine]]]:
    model = str(ensure_unpacked(lambda _: None))
    engines = [Engine(f"engine-{number}", state, model, MODEL_NAME) for number in range(ENGINES)]
    with contextlib.ExitStack() as ends:
        for engine in engines:
            ends.callback(engine.stop)
            engine.start()
        for engine in engines:
            engine.wait()
        front = router(engines, DEPLOYED)
        gateway = Child("lychee_server", "--engine-url", front.url, "--log-level", "error", ready="/readyz")
        for child in (front, gateway):
            ends.callback(child.kill)
            child.start()
            child.wait()
        yield gateway, front, engines


def _prompt_tokens(engine: Engine, asked: Sequence[Asked]) -> list[int]:
    """Ask an engine how long the prompts are."""
    limits = httpx.Limits(max_connections=4)
    with httpx.Client(base_url=engine.url, timeout=120, limits=limits, trust_env=False) as http:

        def count(each: Asked) -> int:
            body = {key: each.body[key] for key in ("model", "messages", "prompt") if key in each.body}
            return int(http.post("/tokenize", json=body).raise_for_status().json()["count"])

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(count, asked))


def _replica_is_up(gateway: Child, engine: Engine) -> bool:
    return any(
        name == "lychee_replica_up" and labels_of(labels)["replica"] == engine.replica and value == 1
        for (name, labels), value in metrics_of(gateway).items()
    )


async def _crash(engine: Engine, gateway: Child, say: Say) -> dict[str, float]:
    """Kill an engine, start it again, and wait until the router uses it; returns when things happened."""
    await asyncio.to_thread(engine.look)
    await asyncio.to_thread(engine.kill)
    say(f"{engine.replica} was killed")
    engine.start()
    await asyncio.to_thread(engine.wait)
    killed_at = engine.lives[-2].killed_at or 0.0
    ready = time.perf_counter() - killed_at
    while not await asyncio.to_thread(_replica_is_up, gateway, engine):
        await asyncio.sleep(0.5)
    used = time.perf_counter() - killed_at
    say(f"{engine.replica} is back after {used:.0f} s")
    return {"ready_seconds": round(ready, 1), "in_the_router_seconds": round(used, 1)}


async def _ask_all(
    gateway: Child, engines: Sequence[Engine], asked: Sequence[Asked], wanted: Wanted, say: Say
) -> tuple[list[Heard], dict[str, float]]:
    heard: list[Heard] = [Heard() for _ in asked]
    numbers, done = itertools.count(), Counter[str]()
    crash: asyncio.Task[dict[str, float]] | None = None
    third, step = len(asked) // 3, max(1, len(asked) // 20)

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal crash
        while (number := next(numbers)) < len(asked):
            if number == third:
                crash = asyncio.create_task(_crash(engines[0], gateway, say))
            if number >= 2 * third and crash is not None:
                await crash  # the last third is for both engines again
            heard[number] = await converse(session, gateway.url, asked[number], wanted.limit)
            done["all"] += 1
            done["errors"] += heard[number].error is not None and not asked[number].not_allowed
            if done["all"] % step == 0:
                say(f"{done['all']:,} of {len(asked):,} requests over, {done['errors']} errors")

    async with client() as session:
        await asyncio.gather(*(work(session) for _ in range(wanted.at_once)))
    if crash is None:
        raise GatewayBenchError("too few requests: no engine was killed")
    return heard, await crash


def _settled(gateway: Child, engines: Sequence[Engine]) -> list[dict[str, int]]:
    """Return the engines' loads as soon as nothing runs any more, or when that takes too long."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        loads = [engine.loads() for engine in engines]
        in_flight = metrics_of(gateway)[("lychee_requests_in_flight", "")]
        if time.monotonic() > end or not (in_flight or any(any(load.values()) for load in loads)):
            return loads
        time.sleep(0.5)


def _contents(
    run: Run, prompt_tokens: Sequence[int], default: object, engine: Engine, allowed: float
) -> dict[str, Any]:
    """Judge what the answers say: of themselves, and by their text."""
    answered = run.numbers("answered")
    differ = {
        number: found
        for number in answered
        if (found := mismatches(run.asked[number], run.heard[number], prompt_tokens[number], default))
    }
    own = {number: told(run.asked[number].mark, run.heard[number].text) for number in answered}
    unclear = [number for number in answered if own[number] is not True]
    # of those that were cut off, only what they said in so many digits can be wrong
    unclear += [
        number for number in run.numbers("left", "error")
        if told(run.asked[number].mark, run.heard[number].text) is False
    ]  # fmt: skip
    clear = [number for number in answered if own[number] is True]
    slips = [number for number in clear if slipped(run.asked[number].mark, run.heard[number].text)]
    again = sorted({*unclear, *slips, *clear[:: max(1, len(clear) // SAMPLE)]})
    gaps: dict[int, float] = {}
    references: dict[int, str] = {}
    for number in again:
        tokens = ask_alone(engine.url, run.asked[number])
        gap = gap_at_difference(run.heard[number].text, tokens, whole=number in own)
        if gap is not None:
            gaps[number], references[number] = gap, "".join(token.text for token in tokens)
    far = {
        number: f"{run.heard[number].text!r}, alone {references[number]!r}, gap {gap:.3g}: {run.asked[number]}"
        for number, gap in gaps.items()
        if gap >= allowed
    }
    return {
        "began_with_their_number": len(clear),
        "slipped_later": len(slips),
        "asked_again_alone": len(again),
        "unclear": len(unclear),
        "as_alone": len(again) - len(gaps),
        "near_ties": {str(number): round(gap, 4) for number, gap in gaps.items() if gap < allowed},
        "parted_with_their_number": {str(number): said for number, said in far.items() if number in clear},
        "others": {str(number): said for number, said in far.items() if number not in clear},
        "mismatches": {str(number): found for number, found in differ.items()},
    }


def run(wanted: Wanted, state: Path, say: Say) -> dict[str, Any]:
    """Start everything, send everything, and judge.

    Args:
        wanted: how much.
        state: folder for logs and journals.
        say: gets a line for each thing that happens.

    Returns:
        The record; its `problems` are empty when all is as it must be.

    Raises:
        GatewayBenchError: a process did not start.
        StartFailed: nor did the stock engine.
        ValueError: too many requests.
    """
    record = describe()
    asked = mix(wanted.requests, MODEL_NAME, wanted.seed)
    say("how far stock SGLang is from itself, alone and in a batch")
    with solo_engine(state, backend="torch_native", environ={"CUDA_VISIBLE_DEVICES": ""}) as address:
        allowed = own_noise(address, asked)
    say(f"noise {allowed:.3f}; two engines")
    with _stack(state) as (gateway, _, engines):
        default = httpx.get(f"{engines[1].url}/lychee/info", trust_env=False, timeout=60).json()["defaults"]["budget"]
        prompt_tokens = _prompt_tokens(engines[1], asked)
        begin = time.perf_counter()
        heard, crash = asyncio.run(_ask_all(gateway, engines, asked, wanted, say))
        seconds = time.perf_counter() - begin
        loads = _settled(gateway, engines)
        metrics = metrics_of(gateway)
        for engine in engines:
            engine.look()
            engine.read_journals()
        whole = Run(asked=asked, heard=heard, lives=[life for e in engines for life in e.lives], metrics=metrics)
        say("asking again, alone")
        contents = _contents(whole, prompt_tokens, default, engines[1], allowed)
    record |= {"requests": wanted.requests, "at_once": wanted.at_once, "engines": ENGINES, "model": MODEL_NAME}
    record |= {"seconds": round(seconds, 1), "limit_seconds": wanted.limit, "noise": round(allowed, 4), "killed": crash}
    return record | _report(whole, loads, contents, prompt_tokens, engines)


def _report(
    run: Run,
    loads: Sequence[dict[str, int]],
    contents: dict[str, Any],
    prompt_tokens: Sequence[int],
    engines: Sequence[Engine],
) -> dict[str, Any]:
    found = problems(run)
    found += [f"request {number}: {'; '.join(said)}" for number, said in contents["mismatches"].items()]
    found += [
        f"request {number}: nothing shows that its answer is its own: {said}"
        for number, said in contents["others"].items()
    ]
    found += [f"engine {place} still has {load}" for place, load in enumerate(loads) if any(load.values())]
    waits = [heard.ended - heard.began for heard in run.heard]
    replicas = replica_counts(run)
    return {
        "kinds": dict(Counter(each.kind for each in run.asked)),
        "prompt_tokens": {"sum": sum(prompt_tokens), "longest": max(prompt_tokens)},
        "streams": sum(each.stream for each in run.asked),
        "chats": sum(each.path == CHAT for each in run.asked),
        "clients_saw": dict(sorted(Counter(run.outcomes).items())),
        "slowest_seconds": round(max(waits), 1),
        "errors": {str(number): run.heard[number].error for number in run.numbers("error")},
        "gateway_counted": {
            route: dict(sorted(statuses(run.metrics, route).items())) for route in sorted({a.path for a in run.asked})
        },
        "open_at_the_kill": {
            "streams": sum(each.stream and run.open_at_the_kill(each.number) for each in run.asked),
            "whole_answers": sum(not each.stream and run.open_at_the_kill(each.number) for each in run.asked),
        },
        "replicas": [dict(zip(("least", "counted", "most"), replicas[e.replica], strict=True)) for e in engines],
        "processes": [
            {"engine": place} | engine_counts(life, run.asked, run.heard)
            for place, engine in enumerate(engines)
            for life in engine.lives
        ],
        "loads_after": list(loads),
        "answers": contents,
        "problems": found,
    }
