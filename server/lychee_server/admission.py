"""Bounded concurrency: so many requests at the engines, a bounded line before them, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lychee_server.errors import QueueTimeout, TooManyRequests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lychee_server.metrics import GatewayMetrics

PRIORITY_SECONDS = 1.0
"""A step of priority is worth so much waiting: who has a lower one waits longer, but not for good."""
SHARE_SECONDS = 0.5
"""A caller's requests stand so far apart in the line: others come in between, however many one caller sends."""
_DURATION_WEIGHT = 0.1
_LONGEST_RETRY = 600.0


@dataclass(order=True, slots=True)
class _Waiter:
    rank: float
    number: int
    called: asyncio.Future[None] = field(compare=False)


@dataclass(slots=True)
class _CallersLine:
    waiting: int = 0
    last_rank: float = 0.0


class Place:
    """One request's place: in the line, then at an engine."""

    def __init__(self, admission: Admission, caller: str, priority: int) -> None:
        self._admission = admission
        self._caller = caller
        self._priority = priority
        self._entered_at: float | None = None

    async def enter(self) -> None:
        """Wait for a free place.

        Raises:
            TooManyRequests: the line is full, and the others in it come first.
            QueueTimeout: it took too long.
        """
        await self._admission._enter(self._caller, self._priority)
        self._entered_at = self._admission.clock()

    def _leave(self) -> None:
        if self._entered_at is not None:
            self._admission._leave(self._entered_at)


class Admission:
    """Counts the requests in flight and keeps the line. All calls are made on the event loop, so plain numbers do.

    A waiter's rank is fixed when it comes: the line's time, less what its priority is worth, but not before the rank
    of its caller's last waiter and a bit. The lowest rank is next. The line's time (that of start-time fair queueing)
    is never behind the rank that was served last, so who had the line for itself owes nothing to who comes later; and
    it grows at least as fast as the clock, so everybody's turn comes.
    """

    def __init__(
        self,
        limit: int,
        max_queue: int,
        queue_timeout: float,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._max_queue = max_queue
        self._timeout = queue_timeout
        self._metrics = metrics
        self.clock = clock
        self._taken = 0
        self._line: list[_Waiter] = []
        self._numbers = itertools.count()
        self._callers: dict[str, _CallersLine] = {}
        self._ahead = 0.0  # of the line's time before the clock
        self._mean_seconds = 0.0

    @property
    def in_flight(self) -> int:
        """Requests at the engines."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    @contextlib.contextmanager
    def place(self, caller: str, priority: int) -> Iterator[Place]:
        """Give a request a place for the time of a block; it is taken by `Place.enter`."""
        place = Place(self, caller, priority)
        try:
            yield place
        finally:
            place._leave()

    async def _enter(self, caller: str, priority: int) -> None:
        if self._taken < self._limit:  # then nobody waits: a place that gets free goes to the line
            self._taken += 1
            return
        begin = self.clock()
        rank = begin + self._ahead - priority * PRIORITY_SECONDS
        if caller in self._callers:
            rank = max(rank, self._callers[caller].last_rank + SHARE_SECONDS)
        waiter = _Waiter(rank, next(self._numbers), asyncio.get_running_loop().create_future())
        self._make_room(waiter)
        heapq.heappush(self._line, waiter)
        own = self._callers.setdefault(caller, _CallersLine())
        own.waiting += 1
        own.last_rank = rank
        self._metrics.queued(len(self._line))
        try:
            async with asyncio.timeout(self._timeout):
                await waiter.called
        except TimeoutError:
            self._give_up(waiter)
            self._metrics.refused("queue_timeout")
            raise QueueTimeout(
                f"no place became free within {self._timeout:g} seconds; try again later", retry_after=self._retry()
            ) from None
        except BaseException:  # the client left or the line was full: raised again at once
            self._give_up(waiter)
            raise
        finally:
            own.waiting -= 1
            if not own.waiting:
                del self._callers[caller]
            self._metrics.queue_left(len(self._line), self.clock() - begin)

    def _make_room(self, waiter: _Waiter) -> None:
        """Refuse the last in a full line: the new one, or one that it comes before."""
        if len(self._line) < self._max_queue:
            return
        # Who has just left or timed out is still in the line until its task runs.
        self._line = [each for each in self._line if not each.called.done()]
        heapq.heapify(self._line)
        if len(self._line) < self._max_queue:
            return
        last = max(self._line, default=waiter)
        self._metrics.refused("queue_full")
        if last <= waiter:
            raise self._full()
        self._remove(last)
        last.called.set_exception(self._full())

    def _full(self) -> TooManyRequests:
        line = f" and {self._max_queue} wait" if self._max_queue else ""
        return TooManyRequests(
            f"{self._limit} requests are in flight already{line}; try again later", retry_after=self._retry()
        )

    def _retry(self) -> float | None:
        """Return when there should be room: the time in which the line, as it is, is worked off."""
        if not self._mean_seconds:
            return None
        return min(_LONGEST_RETRY, self._mean_seconds * (len(self._line) + 1) / self._limit)

    def _give_up(self, waiter: _Waiter) -> None:
        self._remove(waiter)
        if waiter.called.done() and not waiter.called.cancelled() and waiter.called.exception() is None:
            self._free()  # it had been called when it left

    def _remove(self, waiter: _Waiter) -> None:
        if waiter in self._line:
            self._line.remove(waiter)
            heapq.heapify(self._line)

    def _leave(self, entered_at: float) -> None:
        seconds = self.clock() - entered_at
        self._mean_seconds += (seconds - self._mean_seconds) * (_DURATION_WEIGHT if self._mean_seconds else 1)
        self._free()

    def _free(self) -> None:
        """Hand a place on to the first in the line."""
        while self._line:
            waiter = heapq.heappop(self._line)
            if not waiter.called.done():
                self._ahead = max(self._ahead, waiter.rank - self.clock())
                waiter.called.set_result(None)
                return
        self._taken -= 1
