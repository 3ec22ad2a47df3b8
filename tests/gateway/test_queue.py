"""The line before the engines: who is next, who is refused, what becomes of those who leave."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading

import pytest
from prometheus_client import CollectorRegistry

from lychee_server.admission import Admission
from lychee_server.errors import QueueTimeout, TooManyRequests
from lychee_server.metrics import GatewayMetrics
from tests.gateway.scripted_engine import DONE, Script, wait_until
from tests.gateway.test_disconnects import send
from tests.gateway.test_limits import in_thread


class Line:
    """An admission, and the order in which requests got their places."""

    def __init__(self, limit: int = 1, max_queue: int = 100, timeout: float = 30.0) -> None:
        self.registry = CollectorRegistry()
        self.now = 1000.0
        self.admission = Admission(limit, max_queue, timeout, GatewayMetrics(self.registry), clock=lambda: self.now)
        self.order: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    async def request(self, name: str, caller: str = "a", priority: int = 0) -> None:
        gate = self.gates.setdefault(name, asyncio.Event())
        with self.admission.place(caller, priority) as place:
            await place.enter()
            self.order.append(name)
            await gate.wait()

    async def start(self, name: str, caller: str = "a", priority: int = 0) -> asyncio.Task[None]:
        task = asyncio.create_task(self.request(name, caller, priority))
        await settled()
        return task

    async def finish_all(self, tasks: list[asyncio.Task[None]]) -> None:
        """Let requests end one after the other, each as soon as it has its place."""
        for _ in tasks:
            for name in self.order:
                self.gates[name].set()
            await settled()
        await asyncio.gather(*tasks)
        assert (self.admission.in_flight, self.admission.waiting) == (0, 0)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_first_come_first_served():
    line = Line()
    tasks = [await line.start(name) for name in "abcdef"]
    assert (line.admission.in_flight, line.admission.waiting) == (1, 5)
    await line.finish_all(tasks)
    assert line.order == list("abcdef")


async def test_a_higher_priority_goes_first():
    line = Line()
    tasks = [await line.start("runs"), await line.start("low", "a"), await line.start("high", "b", priority=10)]
    await line.finish_all(tasks)
    assert line.order == ["runs", "high", "low"]


async def test_priority_is_worth_time_so_nobody_waits_for_good():
    line = Line()
    tasks = [await line.start("runs"), await line.start("low", "a")]
    line.now += 10.5
    tasks.append(await line.start("high but late", "b", priority=10))
    await line.finish_all(tasks)
    assert line.order == ["runs", "low", "high but late"]


async def test_one_caller_does_not_fill_the_line():
    line = Line()
    tasks = [await line.start("runs")]
    tasks += [await line.start(f"a{number}", "a") for number in range(20)]
    tasks += [await line.start(f"b{number}", "b") for number in range(3)]
    await line.finish_all(tasks)
    # b comes at the same time as a's first: its requests stand between those of a, not behind them.
    assert line.order[:8] == ["runs", "a0", "b0", "a1", "b1", "a2", "b2", "a3"]
    assert [name for name in line.order if name[0] == "a"] == [f"a{number}" for number in range(20)]


async def test_a_full_line_refuses_the_last_in_it():
    line = Line(max_queue=2)
    tasks = [await line.start("runs"), await line.start("one", "a"), await line.start("two", "a")]
    with pytest.raises(TooManyRequests, match="1 requests are in flight already and 2 wait"):
        await line.request("three", "a")
    tasks.append(await line.start("vip", "b", priority=5))  # comes before "two", which has to go
    with pytest.raises(TooManyRequests):
        await tasks.pop(2)
    await line.finish_all(tasks)
    assert line.order == ["runs", "vip", "one"]
    assert line.registry.get_sample_value("lychee_requests_refused_total", {"reason": "queue_full"}) == 2
    assert line.registry.get_sample_value("lychee_requests_queued") == 0
    assert line.registry.get_sample_value("lychee_gateway_queue_seconds_count") == 3


async def test_who_has_just_left_a_full_line_is_not_refused_again():
    line = Line(max_queue=1)
    tasks = [await line.start("runs"), await line.start("leaver", "a")]
    tasks.append(asyncio.create_task(line.request("vip", "b", priority=5)))
    tasks[1].cancel()  # vip comes before its task has run
    with pytest.raises(asyncio.CancelledError):
        await tasks.pop(1)
    await line.finish_all(tasks)
    assert line.order == ["runs", "vip"]


async def test_past_use_is_no_debt():
    line = Line()
    numbers = itertools.count()
    tasks: list[asyncio.Task[None]] = []

    async def second(callers: str) -> None:
        """Ten requests are served in it, and each caller has three waiting all the time."""
        for _ in range(10):
            line.now += 0.1
            line.gates[line.order[-1]].set()
            await settled()
            await fill(callers)

    async def fill(callers: str) -> None:
        begun = set(line.order)
        for caller in callers:
            waiting = [name for name in line.gates if name[0] == caller and name not in begun]
            for _ in range(3 - len(waiting)):
                tasks.append(await line.start(f"{caller}{next(numbers)}", caller))

    tasks.append(await line.start("a-first", "a"))
    await fill("a")
    for _ in range(120):  # a alone: its ranks run five times as fast as the clock
        await second("a")
    before = len(line.order)
    for _ in range(10):
        await second("ab")
    served = [name[0] for name in line.order[before:]]
    assert len(served) == 100
    assert 45 <= served.count("a") <= 55
    await line.finish_all(tasks)


async def test_priority_is_worth_no_more_after_a_rush():
    line = Line()
    tasks = [await line.start("runs")]
    tasks += [await line.start(f"a{number}", "a") for number in range(100)]
    while len(line.order) < 100:  # the line's time is fifty seconds ahead of the clock
        line.gates[line.order[-1]].set()
        await settled()
    tasks.append(await line.start("low", "b"))
    line.now += 10.5
    tasks += [await line.start(f"high{number}", f"c{number}", priority=10) for number in range(5)]
    await line.finish_all(tasks)
    assert line.order[100:] == ["low", "a99", *(f"high{number}" for number in range(5))]


async def test_retry_after_is_the_time_to_work_off_the_line():
    line = Line(limit=2, max_queue=2)
    task = await line.start("measured")
    line.now += 8
    await line.finish_all([task])
    tasks = [await line.start(name) for name in "abcd"]
    with pytest.raises(TooManyRequests) as refused:
        await line.request("e")
    assert refused.value.retry_after == 8.0 * (2 + 1) / 2
    await line.finish_all(tasks)


async def test_waiting_has_an_end():
    line = Line(timeout=0.05)
    task = await line.start("runs")
    with pytest.raises(QueueTimeout, match=r"within 0\.05 seconds"):
        await line.request("late")
    assert line.admission.waiting == 0
    await line.finish_all([task])


@pytest.mark.parametrize("called_first", [False, True])
async def test_who_leaves_the_line_takes_no_place_along(called_first):
    line = Line()
    first, leaver, last = await line.start("first"), await line.start("leaver"), await line.start("last")
    if called_first:  # the place is handed to one that is cancelled before it can take it
        line.gates["first"].set()
        await asyncio.sleep(0)
        leaver.cancel()
    else:
        leaver.cancel()
        await settled()
        line.gates["first"].set()
    with contextlib.suppress(asyncio.CancelledError):
        await leaver
    await first
    await settled()
    assert line.order[-1] == "last"
    line.gates["last"].set()
    await last
    assert (line.admission.in_flight, line.admission.waiting) == (0, 0)


def test_requests_wait_over_http_and_all_are_answered(running, start_gateway):
    gateway = start_gateway(max_concurrency=2, max_queue=10)
    gate = threading.Event()
    running.engine.script = Script(gate=gate)
    waiting = [in_thread(lambda stream=stream: gateway.chat(stream=stream)) for stream in (False, True) * 4]
    wait_until(lambda: gateway.value("lychee_requests_queued") == 6)
    assert len(running.engine.bodies) == 2
    gate.set()
    for thread, _ in waiting:
        thread.join(60)
    assert [replies[0].status_code for _, replies in waiting] == [200] * 8
    assert gateway.total("lychee_gateway_queue_seconds_count") == 6
    assert gateway.value("lychee_requests_queued") == 0


def test_who_hangs_up_in_the_line_is_never_sent(running, start_gateway):
    gateway = start_gateway(max_concurrency=1)
    gate = threading.Event()
    running.engine.script = Script(gate=gate)
    thread, replies = in_thread(gateway.chat)
    wait_until(lambda: running.engine.bodies)
    with send(gateway):
        wait_until(lambda: gateway.value("lychee_requests_queued") == 1)
    wait_until(lambda: gateway.value("lychee_requests_queued") == 0)
    gate.set()
    thread.join(60)
    assert replies[0].status_code == 200
    assert gateway.total("lychee_client_disconnects_total") == 1
    assert len(running.engine.bodies) == 1
    assert running.engine.aborts == []


def test_a_timeout_in_the_line(running, start_gateway):
    gateway = start_gateway(max_concurrency=1, queue_timeout=0.2)
    gate = threading.Event()
    running.engine.script = Script(gate=gate)
    thread, _ = in_thread(gateway.chat)
    wait_until(lambda: running.engine.bodies)
    late = gateway.chat(stream=True)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "queue_timeout")
    assert int(late.headers["retry-after"]) >= 1
    gate.set()
    thread.join(60)
    assert running.engine.aborts == []
    assert gateway.total("lychee_requests_refused_total", reason="queue_timeout") == 1


@pytest.mark.parametrize("in_time", [True, False])
def test_a_shutdown_holds_for_those_who_wait(running, start_gateway, in_time):
    gateway = start_gateway(max_concurrency=1, drain_timeout=600 if in_time else 0.3)
    gate = threading.Event()
    running.engine.script = Script(gate=gate)
    asked = [in_thread(lambda: gateway.chat(stream=True)) for _ in range(3)]
    wait_until(lambda: gateway.value("lychee_requests_queued") == 2)
    wait_until(lambda: gateway.value("lychee_time_to_first_token_seconds_count") == 1)
    gateway.server.server.should_exit = True
    drain = gateway.server.server.config.app.state.gateway.drain
    wait_until(lambda: drain.begun)
    if in_time:
        gate.set()
    for thread, _ in asked:
        thread.join(60)
    gateway.server.join()
    replies = [replies[0] for _, replies in asked]
    if in_time:
        assert all(reply.content.endswith(DONE) and b"error" not in reply.content for reply in replies)
    else:
        assert all(b"shutting_down" in reply.content for reply in replies)
        assert sorted(reply.status_code for reply in replies) == [200, 503, 503]
