"""Real engines that can be killed and started again at the same address, and what they say of their requests.

An engine writes a journal: SGLang's own request log, a line when a request comes in and one when it has ended. It
outlives the engine, which its counters do not. The line names the request by the header `traceparent` of its client.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from lychee_sgl.bench.gateway_parts import GatewayBenchError
from lychee_sgl.bench.router_requests import number_of
from lychee_sgl.serve.config import ServeConfig, engine_service
from lychee_sgl.serve.process import Lifeline, Service, meaningful_tail
from lychee_sgl.serve.ready import Probe
from lychee_sgl.serve.solo import START_SECONDS, free_port

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ENVIRON = {
    # one thread each, so that two engines share two cores; sparse from the first tokens on
    "LYCHEE_PREFILL_THREADS": "1",
    "LYCHEE_DENSE_BELOW": "16",
    "LYCHEE_MEMORY_BANK_BYTES": "0",
    "SGLANG_LOG_REQUEST_HEADERS": "traceparent",
}
STOP_SECONDS = 40.0
_SAMPLE = re.compile(r"^([\w:]+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_HEALTH = "HEALTH_CHECK"  # how the names of SGLang's own checks begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A request as the engine ended it.

    Attributes:
        reason: `length`, `stop` or `abort`.
        prompt_tokens: of its prompt.
        tokens: of its answer.
        attended: KV entries that its decode steps have read.
        dense: those that dense steps would have read.
        ran: it got past the engine's queue; SGLang's counters leave out those that left it there.
    """

    reason: str
    prompt_tokens: int
    tokens: int
    attended: int
    dense: int
    ran: bool = True


@dataclass(slots=True, kw_only=True)
class Life:
    """What one process of an engine did.

    Attributes:
        replica: host and port.
        received: requests of the mix, by number.
        finished: those that it ended.
        others: what it ended beside them, its own warm-up.
        counted: its own counters, when it was last asked.
        looked_at: `time.perf_counter()` before they were asked for.
        killed_at: and before it was killed; None: it was not.
    """

    replica: str
    received: Counter[int] = field(default_factory=Counter)
    finished: dict[int, Finished] = field(default_factory=dict)
    others: list[Finished] = field(default_factory=list)
    counted: dict[str, float] = field(default_factory=dict)
    looked_at: float = 0.0
    killed_at: float | None = None

    def read(self, lines: Iterable[str]) -> None:
        """Take a journal."""
        for line in lines:
            said = json.loads(line[line.index("{") :])
            trace = said.get("headers", {}).get("traceparent")
            number = None if trace is None else number_of(trace)
            if said["event"] == "request.received":
                if number is not None:
                    self.received[number] += 1
            elif said["event"] == "request.finished":
                ended = _finished(said["out"]["meta_info"])
                if number is not None:
                    self.finished[number] = ended
                elif not str(said["rid"]).startswith(_HEALTH):
                    self.others.append(ended)


def _finished(meta: dict[str, Any]) -> Finished:
    steps = [step for step in meta.get("lychee") or () if step is not None]
    return Finished(
        reason=meta["finish_reason"]["type"],
        prompt_tokens=meta.get("prompt_tokens", 0),
        tokens=meta["completion_tokens"],
        attended=sum(step[0] for step in steps),
        dense=sum(step[1] for step in steps),
        ran="prompt_tokens" in meta,
    )


def samples(text: str) -> dict[tuple[str, str], float]:
    """Read metrics: values by name and labels."""
    return {(name, labels): float(value) for name, labels, value in _SAMPLE.findall(text)}


def totals(text: str) -> dict[str, float]:
    """Read metrics: values by name, added up over all labels."""
    found: Counter[str] = Counter()
    for (name, _), value in samples(text).items():
        found[name] += value  # type: ignore[assignment]
    return dict(found)


class Engine:
    """One engine on this machine's CPU, as `lychee-sgl serve` starts it."""

    def __init__(self, name: str, state: Path, model: str, served_name: str) -> None:
        """Nothing is started yet.

        Args:
            name: of its logs.
            state: folder for them.
            model: folder of the model.
            served_name: the model's name in the API.
        """
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lives: list[Life] = []
        self._name, self._state, self._model, self._served_name = name, state, model, served_name
        self._lifeline = Lifeline()
        self._service: Service | None = None

    @property
    def replica(self) -> str:
        """Its label in the gateway's metrics."""
        return f"127.0.0.1:{self.port}"

    def _journal(self) -> Path:
        return self._state / f"{self._name}-{len(self.lives)}"

    def start(self) -> None:
        """Start it; `wait` says when it is ready."""
        self.lives.append(Life(replica=self.replica))
        log_requests = ("--log-requests", "--log-requests-level", "0", "--log-requests-format", "json")
        config = ServeConfig(
            engine_port=self.port,
            engine_args=(*log_requests, "--log-requests-target", str(self._journal())),
        )
        state = self._journal().with_suffix(".logs")
        state.mkdir(parents=True)
        spec = engine_service(
            config,
            self._model,
            self._served_name,
            accelerator=False,
            state=state,
            environ={**os.environ, **ENVIRON, "CUDA_VISIBLE_DEVICES": ""},
        )
        self._service = Service(spec, self._lifeline)
        self._service.start()

    def wait(self) -> None:
        """Wait until it has generated a token; raises `GatewayBenchError`."""
        service, end = self._service, time.monotonic() + START_SECONDS
        if service is None:
            raise GatewayBenchError(f"{self._name} was not started")
        with contextlib.closing(Probe(f"{self.url}/health", timeout=25.0)) as ready:
            while not ready():
                if service.poll() is not None or time.monotonic() > end:
                    tail = "\n".join(meaningful_tail(service.spec.log))
                    raise GatewayBenchError(f"{self._name} is not ready:\n{tail}")
                time.sleep(0.2)

    def look(self) -> None:
        """Ask for its counters."""
        life = self.lives[-1]
        began = time.perf_counter()
        life.counted = totals(httpx.get(f"{self.url}/metrics", timeout=60, trust_env=False).raise_for_status().text)
        life.looked_at = began

    def kill(self) -> None:
        """Kill its main process, as the kernel would, and wait until its keeper has ended the rest."""
        service = self._service
        if service is None or service.pid is None:
            raise GatewayBenchError(f"{self._name} does not run")
        (main,) = psutil.Process(service.pid).children()
        self.lives[-1].killed_at = time.perf_counter()
        main.kill()
        end = time.monotonic() + STOP_SECONDS
        while service.poll() is None:
            if time.monotonic() > end:
                raise GatewayBenchError(f"the processes of {self._name} cannot be killed")
            time.sleep(0.05)

    def loads(self) -> dict[str, int]:
        """Return the requests that it runs or keeps waiting, and the tokens of its KV pool that are in use."""
        reply = httpx.get(f"{self.url}/v1/loads", timeout=60, trust_env=False).raise_for_status().json()
        names = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")
        return {name: sum(int(rank[name]) for rank in reply["loads"]) for name in names}

    def read_journals(self) -> None:
        """Read what every life of it wrote."""
        for number, life in enumerate(self.lives, 1):
            for path in sorted((self._state / f"{self._name}-{number}").glob("*.log*")):
                with path.open(encoding="utf-8") as lines:
                    life.read(lines)

    def stop(self) -> None:
        """End it."""
        if self._service is not None:
            self._service.stop()
            end = time.monotonic() + STOP_SECONDS
            while self._service.poll() is None and time.monotonic() < end and self._service.pid is not None:
                time.sleep(0.1)
        self._lifeline.close()
