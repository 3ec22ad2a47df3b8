"""Measures an engine's speed curve: time per token, dense and at several budgets, against context and batch."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

SCHEMA: Final = "lychee-sgl/speed-curve"
TOKENS: Final = 36
"""Output tokens of a measured request."""
SKIPPED: Final = 3
"""Tokens before the first that counts: the prefill's, the audited first step, and one more."""
RUN: Final = 16
"""Tokens whose mean time is one sample: tokens that arrive bundled do not disturb it."""
POOL_SHARE: Final = 0.9
"""How much of the KV pool a measurement may fill."""
BATCH_OF_STEP: Final = 6
"""Where a step's statistics have the batch (DESIGN.md section 3)."""

Budget = int | str
Cell = tuple[int, int]
"""Context and batch."""


class CalibrationError(RuntimeError):
    """The engine cannot be measured; the message says why and what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine says of itself.

    Attributes:
        info: its `/lychee/info`.
        sglang: the version of its SGLang.
        pool: tokens in its KV pool.
        running: requests that it may run at one time.
    """

    info: Mapping[str, Any]
    sglang: str | None
    pool: int
    running: int

    @property
    def window(self) -> int:
        """Tokens of prompt and answer together."""
        return int(self.info["context_window"])

    def identity(self, device: str) -> dict[str, Any]:
        """The part of a curve that says what was measured, on which hardware."""
        return {
            "model": self.info["model"],
            "plan": {"name": self.info["plan"]["name"], "sha256": self.info["plan"]["sha256"]},
            "device": device,
            "engine": {
                "lychee": self.info["version"],
                "sglang": self.sglang,
                "device": self.info["device"],
                "dense_below": self.info["dense_below"],
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is to be measured; `cells` leaves out what the engine cannot hold."""

    budgets: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]

    def cells(self, facts: EngineFacts) -> Iterator[tuple[Cell, tuple[Budget, ...]]]:
        """Give contexts and batches, the long contexts last, each with the budgets that are not dense there anyway.

        Every budget has a point just above the context up to which it is dense.
        """
        below = int(facts.info["dense_below"])
        floors = {budget: max(budget, below) + TOKENS // 2 + 1 for budget in self.budgets}
        longest = facts.window - TOKENS
        contexts = sorted({*self.contexts, *floors.values()})
        for context, batch in itertools.product(contexts, sorted(self.batches)):
            fits = batch * (context + TOKENS) <= POOL_SHARE * facts.pool and batch <= facts.running
            if TOKENS <= context <= longest and fits:
                sparse = [budget for budget in sorted(self.budgets) if context >= floors[budget]]
                yield (context, batch), ("dense", *sparse)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """One streamed answer: when how many tokens were there, and the batch at each token's step."""

    moments: tuple[tuple[float, int], ...]
    batches: tuple[int | None, ...]

    def samples(self, batch: int) -> list[float]:
        """Seconds per token, over runs of `RUN` tokens while exactly `batch` requests decoded."""
        together = [at for at, found in enumerate(self.batches) if found == batch and at >= SKIPPED]
        if not together:
            return []
        inside = [(when, count) for when, count in self.moments if together[0] <= count - 1 <= together[-1]]
        found, start = [], 0
        for end in range(1, len(inside)):
            (began, before), (ended, after) = inside[start], inside[end]
            if after - before >= RUN:
                found.append((ended - began) / (after - before))
                start = end
        return found


async def examine(client: httpx.AsyncClient) -> EngineFacts:
    """Ask an engine what it is.

    Raises:
        CalibrationError: nobody answers, or not as an engine with the attention backend lychee does.
    """
    try:
        info = await client.get("/lychee/info")
        server = await client.get("/server_info")
    except httpx.HTTPError as error:
        raise CalibrationError(f"no engine at {client.base_url}: {error}") from error
    if httpx.codes.UNAUTHORIZED in (info.status_code, server.status_code):
        raise CalibrationError(f"{client.base_url} wants a key: give it with --api-key or LYCHEE_ENGINE_API_KEY")
    if info.status_code != httpx.codes.OK or server.status_code != httpx.codes.OK:
        raise CalibrationError(
            f"{client.base_url} has no /lychee/info: give the address of the engine itself, not the gateway's"
        )
    try:
        facts = server.json()
        return EngineFacts(
            info=info.json(),
            sglang=facts.get("version"),
            pool=int(facts["max_total_num_tokens"]),
            running=int(facts["internal_states"][0]["effective_max_running_requests_per_dp"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CalibrationError(f"{client.base_url}/server_info cannot be read: {error!r}") from error


def prompt_ids(row: int, length: int) -> list[int]:
    """Token ids of one row's prompt; a shorter prompt is the beginning of a longer, so the cache holds most of it."""
    rng = random.Random(row)
    return [rng.randrange(1000, 30_000) for _ in range(length)]


async def stream(client: httpx.AsyncClient, prompt: Sequence[int], tokens: int, budget: Budget) -> Arrivals:
    """Ask for an answer of exactly so many tokens and note when each comes.

    Raises:
        CalibrationError: the engine refuses, breaks off, or does not say what its steps did.
    """
    body = {
        "input_ids": list(prompt),
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": tokens,
            "ignore_eos": True,
            "custom_params": {"lychee_budget": budget},
        },
        "stream": True,
    }
    moments: list[tuple[float, int]] = []
    steps: list[Sequence[Any] | None] = []
    try:
        async with client.stream("POST", "/generate", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise CalibrationError(f"the engine refused: {(await response.aread()).decode(errors='replace')[:300]}")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    meta = _meta(line)
                    moments.append((time.perf_counter(), int(meta["completion_tokens"])))
                    steps = meta.get("lychee") or steps
    except httpx.HTTPError as error:
        raise CalibrationError(f"the engine is gone: {error!r}") from error
    batches = tuple(None if step is None else int(step[BATCH_OF_STEP]) for step in steps)
    if len(batches) != tokens:
        raise CalibrationError(f"the engine accounts for {len(batches)} of {tokens} tokens")
    return Arrivals(moments=tuple(moments), batches=batches)


def _meta(line: str) -> dict[str, Any]:
    event = json.loads(line.removeprefix("data: "))
    if "meta_info" not in event:
        raise CalibrationError(f"the engine broke off: {line[:300]}")
    meta: dict[str, Any] = event["meta_info"]
    return meta


async def measure_cell(
    client: httpx.AsyncClient, cell: Cell, budgets: Sequence[Budget], rounds: int
) -> list[dict[str, Any]]:
    """Measure one context and batch at several budgets, asked in turn.

    Returns:
        Points of the curve.

    Raises:
        CalibrationError: see `stream`; or the engine did not run the requests together.
    """
    context, batch = cell
    prompts = [prompt_ids(row, context - TOKENS // 2) for row in range(batch)]
    for prompt in prompts:  # into the cache, one by one: decoding is measured, not prefill
        await stream(client, prompt, 1, "dense")
    samples: dict[Budget, list[float]] = {budget: [] for budget in budgets}
    for _, budget in itertools.product(range(rounds), budgets):
        answers = await asyncio.gather(*(stream(client, prompt, TOKENS, budget) for prompt in prompts))
        samples[budget] += [sample for answer in answers for sample in answer.samples(batch)]
    alone = next((budget for budget, found in samples.items() if len(found) < batch), None)
    if alone is not None:
        raise CalibrationError(
            f"the engine did not run {batch} requests of {context} tokens together (budget {alone}): "
            "is something else using it? Else leave out that batch"
        )
    return [_point(budget, cell, found) for budget, found in samples.items()]


def _point(budget: Budget, cell: Cell, seconds: Sequence[float]) -> dict[str, Any]:
    quarters = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [0.0, 0.0, 0.0]
    return {
        "budget": budget,
        "context": cell[0],
        "batch": cell[1],
        "itl_ms": round(statistics.median(seconds) * 1000, 4),
        "spread_ms": round((quarters[2] - quarters[0]) * 1000, 4),
        "samples": len(seconds),
    }


def resume(out: Path, identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the points that an earlier run on the same engine has left in the file.

    Raises:
        CalibrationError: the file is something else, or another engine's.
    """
    if not out.exists():
        return []
    try:
        found = json.loads(out.read_bytes())
        there = {key: found[key] for key in identity}
        points: list[dict[str, Any]] = found["points"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{out} is no speed curve: {error!r}; choose another --out or add --fresh") from error
    changed = [key for key, value in identity.items() if there[key] != value]
    if changed:
        raise CalibrationError(
            f"{out} was measured on another engine (other {', '.join(changed)}); choose another --out or add --fresh"
        )
    return points


def write(out: Path, record: Mapping[str, Any]) -> None:
    """Write the whole curve; whoever reads it meanwhile sees the old one or the new."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    points = ",\n  ".join(json.dumps(point) for point in record["points"])
    head = json.dumps({key: value for key, value in record.items() if key != "points"}, indent=1)
    partial.write_text(f'{head.rstrip("}").rstrip()},\n "points": [\n  {points}\n ]\n}}\n')
    partial.replace(out)


async def measure(
    client: httpx.AsyncClient,
    grid: Grid,
    record: dict[str, Any],
    facts: EngineFacts,
    rounds: int,
    save: Callable[[Cell, int, int], None],
) -> None:
    """Measure what is missing in a record.

    Args:
        client: for the engine's address.
        grid: what to measure.
        record: the curve so far; points are added to it.
        facts: of this engine.
        rounds: how often each budget is asked.
        save: called before each cell and at the end, with the cell, how many are done and how many there are.
    """
    there = {(point["budget"], point["context"], point["batch"]) for point in record["points"]}
    cells = list(grid.cells(facts))
    if not cells:
        raise CalibrationError(
            f"nothing to measure: no context fits the engine's window of {facts.window} and its pool of {facts.pool}"
        )
    for done, (cell, budgets) in enumerate(cells):
        save(cell, done, len(cells))
        missing = [budget for budget in budgets if (budget, *cell) not in there]
        if missing:
            record["points"] += await measure_cell(client, cell, missing, rounds)
    save(cells[-1][0], len(cells), len(cells))
