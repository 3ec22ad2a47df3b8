"""Starts engine and gateway, restarts what dies, and leaves no process behind."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Final, Protocol

from lychee_sgl.serve.backoff import Backoff
from lychee_sgl.serve.process import (
    Lifeline,
    LogFollower,
    Service,
    ServiceSpec,
    describe_status,
    meaningful_tail,
)
from lychee_sgl.serve.ready import FIRST_STAGE, later_stage
from lychee_sgl.serve.reaper import adopt_orphans, kill_children

TICK_SECONDS: Final = 0.2
PROBE_SECONDS: Final = 0.5
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StartFailed(RuntimeError):
    """The deployment never became ready; the message says why, with the telling lines of a log."""


class Reporter(Protocol):
    """Whom the supervisor tells what happens."""

    def waiting(self, stage: str, seconds: float) -> None:
        """Still starting; called several times a second."""

    def ready(self, seconds: float) -> None:
        """Requests are served, for the first time or again after a failure."""

    def event(self, text: str) -> None:
        """Something happened that the operator should see."""

    def log_line(self, service: str, line: str) -> None:
        """One line of a service's log."""


@dataclass(slots=True)
class _Managed:
    service: Service
    follower: LogFollower
    backoff: Backoff = field(default_factory=Backoff)
    restart_at: float | None = None

    @property
    def name(self) -> str:
        return self.service.spec.name


class Supervisor:
    """Runs two services until it is told to stop.

    Both start at once; the gateway answers 503 until the engine is up. Whatever dies before the first readiness ends
    the start, whatever dies later is started again. Everything runs in the calling thread, which must be the main one
    (signals).
    """

    def __init__(
        self,
        engine: ServiceSpec,
        gateway: ServiceSpec,
        is_ready: Callable[[], bool],
        reporter: Reporter,
        *,
        start_timeout: float,
    ) -> None:
        self._lifeline = Lifeline()
        self._engine = _Managed(Service(engine, self._lifeline), LogFollower(engine.log))
        self._gateway = _Managed(Service(gateway, self._lifeline), LogFollower(gateway.log))
        self._is_ready = is_ready
        self._reporter = reporter
        self._start_timeout = start_timeout
        self._wake = threading.Event()
        self._stop_requests = 0
        self._stage = FIRST_STAGE

    def run(self) -> None:
        """Start, watch, and stop when SIGINT, SIGTERM or SIGHUP arrives.

        Raises:
            StartFailed: a service ended, or the start timeout passed, before the first readiness. Nothing is left
                running then.
        """
        adopt_orphans()
        with self._signals():
            try:
                for managed in self._both():
                    managed.service.start()
                self._watch()
            finally:
                self._shut_down()

    def _both(self) -> tuple[_Managed, _Managed]:
        return self._gateway, self._engine

    def _watch(self) -> None:
        started = down_since = time.monotonic()
        next_probe = started
        ready = ever_ready = False
        while not self._stop_requests:
            self._wake.wait(TICK_SECONDS)
            now = time.monotonic()
            self._follow_logs()
            for managed in self._both():
                status = managed.service.poll()
                if status is not None:
                    if not ever_ready:
                        raise StartFailed(self._epitaph(managed, status))
                    down_since = now if ready else down_since
                    ready = False
                    self._sweep()
                    self._schedule_restart(managed, describe_status(status), now)
                elif managed.restart_at is not None and now >= managed.restart_at:
                    self._restart(managed, now)
            if ready:
                continue
            self._reporter.waiting(self._stage, now - down_since)
            if now >= next_probe:
                ready = not self._anything_down() and self._is_ready()
                next_probe = time.monotonic() + PROBE_SECONDS
            if ready:
                ever_ready = True
                for managed in self._both():
                    managed.backoff.healthy(now)
                self._reporter.ready(now - down_since)
            elif not ever_ready and now - started > self._start_timeout:
                raise StartFailed(f"not ready after {self._start_timeout:.0f} s (still {self._stage})")

    def _anything_down(self) -> bool:
        return any(managed.service.pid is None for managed in self._both())

    def _epitaph(self, managed: _Managed, status: int) -> str:
        log = managed.service.spec.log
        lines = [f"the {managed.name} {describe_status(status)} while it was starting; its log says:"]
        lines += [f"  {line}" for line in meaningful_tail(log)] or ["  (nothing)"]
        if "SIGKILL" in lines[0]:
            lines.append("nobody here sent that signal: the system does when memory runs out (`lychee-sgl doctor`)")
        return "\n".join([*lines, f"the whole log: {log}"])

    def _schedule_restart(self, managed: _Managed, what: str, now: float) -> None:
        pause = managed.backoff.failed(now)
        managed.restart_at = now + pause
        self._reporter.event(
            f"the {managed.name} {what}; starting it again in {pause:.0f} s (log: {managed.service.spec.log})"
        )

    def _restart(self, managed: _Managed, now: float) -> None:
        managed.restart_at = None
        if managed is self._engine:
            self._stage = FIRST_STAGE
        try:
            managed.service.start()
        except OSError as error:  # no process or no disk to be had just now: the other service goes on
            self._schedule_restart(managed, f"cannot be started ({error})", now)

    def _follow_logs(self) -> None:
        for managed in self._both():
            lines = managed.follower.new_lines()
            if managed is self._engine:
                self._stage = later_stage(self._stage, lines)
            for line in lines:
                self._reporter.log_line(managed.name, line)

    def _shut_down(self) -> None:
        """Gateway first: it drains while the engine still answers. A second signal kills what is left."""
        try:
            for managed in self._both():
                managed.restart_at = None
                self._stop(managed)
            self._follow_logs()
        finally:
            self._lifeline.close()
            kill_children()

    def _stop(self, managed: _Managed) -> None:
        managed.service.stop()
        # the keeper kills after the grace; the margin is for what it has to clean up
        deadline = time.monotonic() + managed.service.spec.stop_grace + 15.0
        while managed.service.pid is not None and time.monotonic() < deadline:
            if self._stop_requests > 1:
                managed.service.stop()  # again and again: of two signals that come at once the keeper may get one
            managed.service.poll()
            self._wake.clear()
            self._wake.wait(TICK_SECONDS / 4)

    def _sweep(self) -> None:
        """Kill orphans that came to us because a keeper was killed; the other service stays."""
        alive = frozenset(pid for managed in self._both() if (pid := managed.service.pid) is not None)
        kill_children(spare=alive)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def request_stop(number: int, frame: FrameType | None) -> None:
            self._stop_requests += 1
            self._wake.set()

        # what is ignored stays ignored: that is how nohup asks to survive the end of a terminal
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, request_stop) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
