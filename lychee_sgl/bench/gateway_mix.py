"""A mix of everything at once: streams and whole answers, budgets, clients that leave, bad requests, killed engines.

Every question has a mark of its own that its answer must repeat, so an answer that reaches the wrong client is seen.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx

from lychee_sgl.bench.echo_engine import answer_text
from lychee_sgl.bench.gateway_parts import CHAT, ask, client, stack
from lychee_sgl.bench.machine import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp

    from lychee_sgl.bench.gateway_parts import Child, Reply

BUDGETS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"budget": 512},
    {"budget": "dense"},
    {"budget": "auto"},
    {"mode": "ratio", "value": 0.5},
)
KILLS = 3
OPTIONS = ("--health-interval", "0.1", "--connect-timeout", "15")
"""The gateway's: it looks often, and a machine that is busy with other things is no dead engine."""
_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


def _request(number: int, random_of: random.Random) -> tuple[dict[str, Any], int]:
    """Make one request; returns it, and after how many chunks its client leaves (-1: it stays)."""
    text = "word " * random_of.choice((10, 100, 1000)) + f"mark {number:010d}"
    body: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": text}]}
    body |= {"max_tokens": random_of.randint(1, 30), "stream": random_of.random() < 0.6, "chunk_pause": 0.001}
    budget = random_of.choice(BUDGETS)
    if budget is not None:
        body["lychee"] = budget
    if random_of.random() < 0.03:
        body["lychee"] = {"budget": 0}
    if not body["stream"] or random_of.random() > 0.08:
        return body, -1
    body["max_tokens"], body["chunk_pause"] = 30, 0.03  # slow enough to be left in the middle
    return body, random_of.randint(1, 10)


def _outcome(body: dict[str, Any], leave_after: int, reply: Reply) -> str:
    """Say in one word how a request ended; `wrong` is what must not be."""
    expected = answer_text(body)
    if not expected.startswith(reply.text):
        return "wrong"
    if reply.done:
        return "answered" if reply.text == expected else "wrong"
    if leave_after > 0 and reply.status == httpx.codes.OK and reply.error is None:
        return "left"
    if reply.status == httpx.codes.BAD_REQUEST:
        return "refused" if body.get("lychee") == {"budget": 0} else "wrong"
    return "error" if reply.error is not None else "wrong"


async def _ask_all(
    gateway: Child, engines: list[Child], count: int, at_once: int, seed: int, deaths: int
) -> Counter[str]:
    random_of = random.Random(seed)
    requests = [_request(number, random_of) for number in range(count)]
    numbers, outcomes = itertools.count(), Counter[str]()
    kill_at = {count * (each + 1) // (deaths + 1): engines[each % len(engines)] for each in range(deaths)}
    kills: list[asyncio.Task[None]] = []
    one_at_a_time = asyncio.Lock()

    async def work(session: aiohttp.ClientSession) -> None:
        while (number := next(numbers)) < count:
            if number in kill_at:
                kills.append(asyncio.create_task(_crash(kill_at[number], one_at_a_time)))
            body, leave_after = requests[number]
            outcomes[_outcome(body, leave_after, await ask(session, gateway.url, body, leave_after=leave_after))] += 1

    async with client() as session:
        await asyncio.gather(*(work(session) for _ in range(at_once)))
    await asyncio.gather(*kills)
    return outcomes


async def _crash(engine: Child, one_at_a_time: asyncio.Lock) -> None:
    async with one_at_a_time:
        engine.kill()
        await asyncio.sleep(0.5)
        engine.start()  # from this thread: the child is tied to the life of the one that starts it
        await asyncio.to_thread(engine.wait)


def metrics_of(gateway: Child) -> dict[tuple[str, str], float]:
    """Read the gateway's metrics: values by name and labels."""
    text = httpx.get(f"{gateway.url}/metrics", trust_env=False).text
    return {(name, labels): float(value) for name, labels, value in _SAMPLE.findall(text)}


def _statuses(metrics: dict[tuple[str, str], float]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for (name, labels), value in metrics.items():
        if name == "lychee_requests_total" and f'route="{CHAT}"' in labels:
            found[labels.split('status="')[1][:3]] += int(value)
    return dict(sorted(found.items()))


def run(
    count: int,
    say: Callable[[str], None],
    *,
    at_once: int = 64,
    engines: int = 2,
    kills: int = KILLS,
    seed: int = 0,
    routed: bool = False,
) -> dict[str, Any]:
    """Send everything and hold what the clients saw against what the gateway counted.

    Args:
        count: requests.
        say: gets a line for each part.
        at_once: clients.
        engines: how many; each kill hits the next one.
        kills: how many, evenly over the requests; each engine comes back.
        seed: of the mix.
        routed: with SGLang's router between gateway and engines.

    Returns:
        The record; its `problems` are empty when all is as it must be.

    Raises:
        GatewayBenchError: a process did not start.
    """
    record = describe()
    with stack(engines, options=OPTIONS, routed=routed) as (gateway, behind):
        say(f"{count} requests, {at_once} at once, {kills} killed engines")
        begin = time.perf_counter()
        outcomes = asyncio.run(_ask_all(gateway, behind, count, at_once, seed, kills))
        seconds = time.perf_counter() - begin
        in_flight = _settled(gateway)
        metrics = metrics_of(gateway)
        active = [httpx.get(f"{engine.url}/counts", trust_env=False).json()["active"] for engine in behind]
    statuses = _statuses(metrics)
    retries = sum(value for (name, _), value in metrics.items() if name == "lychee_engine_retries_total")
    record |= {"requests": count, "at_once": at_once, "engines": engines, "kills": kills, "seconds": round(seconds, 1)}
    record |= {"clients_saw": dict(sorted(outcomes.items())), "gateway_counted": statuses, "retries": int(retries)}
    record |= {"in_flight_after": in_flight, "active_in_engines_after": active}
    if routed:
        record["replicas"] = replicas = {
            labels.split('replica="')[1].rstrip('"'): int(value)
            for (name, labels), value in metrics.items()
            if name == "lychee_replica_answers_total"
        }
        # in the order of the engines, whose ports say nothing
        record["replicas"] = [replicas.get(engine.url.removeprefix("http://"), 0) for engine in behind]
    record["problems"] = problems(count, outcomes, statuses, in_flight, active)
    return record


def _settled(gateway: Child) -> float:
    """Return the requests in flight once the gateway has noted the last clients that left."""
    deadline = time.monotonic() + 10
    while True:
        left = metrics_of(gateway)[("lychee_requests_in_flight", "")]
        if left == 0 or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def problems(
    count: int, outcomes: Counter[str], statuses: dict[str, int], in_flight: float, active: list[int]
) -> list[str]:
    """Say what does not add up.

    A client that leaves may do so when its whole answer is on the way, or its engine has just died: the gateway counts
    what it saw first.
    """
    found = []
    ok, gone = statuses.get("200", 0), statuses.get("499", 0)
    errors = sum(number for status, number in statuses.items() if status >= "500")
    if outcomes["wrong"]:
        found.append(f"{outcomes['wrong']} answers were wrong")
    if sum(outcomes.values()) != count or sum(statuses.values()) != count:
        found.append(f"{count} requests, {sum(outcomes.values())} outcomes, {sum(statuses.values())} counted")
    unread, broken = ok - outcomes["answered"], errors - outcomes["error"]
    if min(unread, broken) < 0 or unread + broken + gone != outcomes["left"]:
        found.append(
            f"{outcomes['answered']} answered, {outcomes['error']} errors, {outcomes['left']} left; counted {statuses}"
        )
    if statuses.get("400", 0) != outcomes["refused"]:
        found.append(f"{outcomes['refused']} refused; counted {statuses}")
    if in_flight or any(active):
        found.append(f"{in_flight:g} requests still in flight, {active} in the engines")
    return found
