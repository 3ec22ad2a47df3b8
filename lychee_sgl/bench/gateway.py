"""What the gateway costs: time to the first token through it and past it, and how many streams it holds."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from lychee_sgl.bench.echo_engine import answer_text
from lychee_sgl.bench.gateway_parts import GatewayBenchError, ask, client, quantile, stack
from lychee_sgl.bench.machine import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp

    from lychee_sgl.bench.gateway_parts import Child, Reply

    Say = Callable[[str], None]

WARM_UP = 50
LONG_CHARACTERS = 128 * 1024
"""About 32,000 tokens of English."""


def _question(characters: int, number: int, **more: Any) -> dict[str, Any]:
    text = "word " * (characters // 5) + f"marker {number:08d}"
    return {"model": "echo", "messages": [{"role": "user", "content": text}], "stream": True, **more}


async def _first_token(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> float:
    reply = await ask(session, url, body)
    if reply.first_seconds is None or not reply.done or reply.text != answer_text(body):
        raise GatewayBenchError(f"{url}: status {reply.status}, error {reply.error}, text {reply.text[:80]!r}")
    return reply.first_seconds


async def first_tokens(gateway: Child, engine: Child, characters: int, rounds: int, at_once: int) -> dict[str, Any]:
    """Measure the time to the first token, in turn through the gateway and past it.

    Args:
        gateway: the way through.
        engine: the way past.
        characters: length of the prompt.
        rounds: questions each way, for each of those at once.
        at_once: clients that do so at the same time.

    Returns:
        Milliseconds: quantiles of both ways and their differences.

    Raises:
        GatewayBenchError: an answer was wrong.
    """
    took: dict[str, list[float]] = {"direct": [], "gateway": []}

    async def one(number: int) -> None:
        async with client() as session:
            for turn in range(WARM_UP // at_once + rounds):
                for way, url in (("direct", engine.url), ("gateway", gateway.url)):
                    seconds = await _first_token(session, url, _question(characters, number, max_tokens=4))
                    if turn >= WARM_UP // at_once:
                        took[way].append(seconds * 1000)

    await asyncio.gather(*(one(number) for number in range(at_once)))
    record: dict[str, Any] = {"prompt_characters": characters, "at_once": at_once, "answers": len(took["direct"])}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        direct, through = quantile(took["direct"], share), quantile(took["gateway"], share)
        values = {"direct_ms": direct, "gateway_ms": through, "added_ms": through - direct}
        record[name] = {key: round(value, 3) for key, value in values.items()}
    return record


async def streams(gateway: Child, count: int, chunks: int, pause: float) -> dict[str, Any]:
    """Hold many streams at the same time and look at every chunk.

    Args:
        gateway: the server.
        count: streams.
        chunks: of each.
        pause: seconds between the engine's chunks of one stream.

    Returns:
        How many answers were whole, and how long first chunks and gaps took.
    """
    bodies = [_question(200, number, max_tokens=chunks, chunk_pause=pause) for number in range(count)]
    async with client() as session:
        begin = time.perf_counter()
        replies: list[Reply] = await asyncio.gather(*(ask(session, gateway.url, body) for body in bodies))
        seconds = time.perf_counter() - begin
    gaps = [gap for reply in replies for gap in reply.gaps]
    firsts = [reply.first_seconds for reply in replies if reply.first_seconds is not None]
    return {
        "streams": count,
        "chunks_each": chunks,
        "pause_seconds": pause,
        "whole_answers": sum(
            reply.done and reply.text == answer_text(body) for reply, body in zip(replies, bodies, strict=True)
        ),
        "chunks_expected": count * chunks,
        "chunks_received": sum(len(reply.gaps) + (reply.first_seconds is not None) for reply in replies),
        "seconds": round(seconds, 2),
        "first_chunk_seconds": {"p50": round(quantile(firsts, 0.5), 3), "p99": round(quantile(firsts, 0.99), 3)},
        "gap_seconds": {"p50": round(quantile(gaps, 0.5), 4), "p99": round(quantile(gaps, 0.99), 4)},
    }


def run(rounds: int, count: int, say: Say) -> dict[str, Any]:
    """Measure everything and return the record.

    Args:
        rounds: questions each way.
        count: streams at the same time.
        say: gets a line for each part.

    Raises:
        GatewayBenchError: a process did not start, or an answer was wrong.
    """
    record = describe()
    with stack(options=("--max-concurrency", str(2 * count))) as (gateway, (engine,)):
        record["first_token"] = []
        for characters, at_once in ((200, 1), (LONG_CHARACTERS, 1), (200, 8)):
            say(f"time to the first token: {characters} characters, {at_once} at once")
            record["first_token"].append(
                asyncio.run(first_tokens(gateway, engine, characters, max(1, rounds // at_once), at_once))
            )
        say(f"{count} streams at the same time")
        record["streams"] = asyncio.run(streams(gateway, count, chunks=100, pause=0.2))
    return record
