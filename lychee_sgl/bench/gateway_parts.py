"""What a measurement of the gateway is made of: engines and gateway as processes, and a client."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
import httpx

from lychee_sgl.serve.reaper import die_with_parent
from lychee_sgl.serve.solo import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CHAT = "/v1/chat/completions"
START_SECONDS = 60.0


class GatewayBenchError(RuntimeError):
    """A process did not start, or an answer was not what it had to be."""


class Child:
    """A process that listens on a port of 127.0.0.1; can be killed and started again at the same address."""

    def __init__(self, module: str, *arguments: str, ready: str, port: int | None = None) -> None:
        """Nothing is started yet.

        Args:
            module: what Python runs.
            arguments: its further arguments.
            ready: the path that answers 200 when it is ready.
            port: by default a free one.
        """
        self.port = port if port is not None else free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-P", "-m", module, "--port", str(self.port), *arguments]
        self._ready = self.url + ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait` says when it is ready."""
        environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            self._command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )

    def wait(self) -> None:
        """Wait until it answers; raises `GatewayBenchError`."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self._ready, trust_env=False).status_code == httpx.codes.OK:
                    return
            if self._process is None or self._process.poll() is not None:
                raise GatewayBenchError(f"this process ended: {' '.join(self._command)}")
            time.sleep(0.05)
        raise GatewayBenchError(f"not ready after {START_SECONDS:g} s: {' '.join(self._command)}")

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Addressed(Protocol):
    """Something with an address."""

    @property
    def url(self) -> str:
        """The address."""


HURRIED = {
    "--policy": "cache_aware",
    "--worker-startup-check-interval": "1",
    "--health-check-interval-secs": "1",
    "--health-success-threshold": "1",
    "--health-failure-threshold": "1",
    "--cb-failure-threshold": "1",
    "--cb-timeout-duration-secs": "1",
}
"""The router's options for engines that answer at once: it looks every second whether one is back.

One failure takes an engine out for a second. With a higher threshold the router tries a dead engine again and again
until its tries are used up.
"""
DEPLOYED = {
    "--policy": "cache_aware",
    "--cb-failure-threshold": "1",
    "--cb-timeout-duration-secs": "10",
    "--health-check-interval-secs": "5",
    "--health-check-timeout-secs": "25",
    "--worker-startup-check-interval": "5",
}
"""The options that the container of the router starts with."""


def router(engines: Sequence[Addressed], options: Mapping[str, str] = MappingProxyType(HURRIED)) -> Child:
    """SGLang's router before these engines.

    Args:
        engines: which.
        options: its command line's.
    """
    given = {"--prometheus-port": str(free_port()), "--log-level": "error", **options}
    words = [word for pair in given.items() for word in pair]
    urls = [engine.url for engine in engines]
    return Child("smg.launch_router", "--host", "127.0.0.1", *words, "--worker-urls", *urls, ready="/readiness")


@contextlib.contextmanager
def stack(
    engines: int = 1, options: Sequence[str] = (), *, routed: bool = False
) -> Iterator[tuple[Child, list[Child]]]:
    """Run a gateway in front of echo engines for the time of a block.

    Args:
        engines: how many.
        options: further flags of the gateway.
        routed: put SGLang's router between gateway and engines.

    Yields:
        The gateway and the engines.
    """
    behind = [Child("lychee_sgl.bench.echo_engine", ready="/health") for _ in range(engines)]
    fronts = [router(behind)] if routed else behind
    urls = ",".join(front.url for front in fronts)
    gateway = Child("lychee_server", "--engine-urls", urls, "--log-level", "error", *options, ready="/readyz")
    children = [*behind, *(fronts if routed else ()), gateway]
    try:
        for child in children:
            child.start()
        for child in children:
            child.wait()
        yield gateway, behind
    finally:
        for child in reversed(children):
            child.kill()


@dataclass(slots=True)
class Reply:
    """One answer as the client saw it.

    Attributes:
        status: HTTP status; 0: the connection failed.
        text: of the answer, put together from its chunks.
        first_seconds: from sending to the first chunk with text.
        gaps: seconds between chunks with text.
        error: code of the error in the body or in the stream.
        done: the answer was complete.
    """

    status: int = 0
    text: str = ""
    first_seconds: float | None = None
    gaps: list[float] = field(default_factory=list)
    error: str | None = None
    done: bool = False


def client() -> aiohttp.ClientSession:
    """Make the client's session: no limits, no cookies, no proxies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
    )


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], *, leave_after: int = -1) -> Reply:
    """Send one chat and follow its answer.

    Args:
        session: of `client`.
        url: of the server.
        body: the request.
        leave_after: close the connection after so many chunks with text; -1: stay.

    Returns:
        What came; never raises for what the server does.
    """
    reply, data = Reply(), json.dumps(body).encode()
    begin = time.perf_counter()
    try:
        async with session.post(url + CHAT, data=data, headers={"content-type": "application/json"}) as response:
            reply.status = response.status
            if response.content_type != "text/event-stream":
                _whole(reply, await response.read())
                return reply
            await _follow(reply, response, begin, leave_after)
    except aiohttp.ClientError:
        reply.error = "connection"
    return reply


def _whole(reply: Reply, raw: bytes) -> None:
    answer = json.loads(raw)
    if "error" in answer:
        reply.error = str(answer["error"]["code"])
    elif "choices" not in answer:
        reply.error = "no answer"
    else:
        reply.text, reply.done = answer["choices"][0]["message"]["content"], True


async def _follow(reply: Reply, response: aiohttp.ClientResponse, begin: float, leave_after: int) -> None:
    last, parts = begin, list[str]()
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        now = time.perf_counter()
        if line.startswith(b"data: [DONE]"):
            reply.done = reply.error is None
            break
        chunk = json.loads(line[6:])
        if "error" in chunk:
            reply.error = str(chunk["error"]["code"])
        elif chunk["choices"][0]["delta"].get("content"):
            if reply.first_seconds is None:
                reply.first_seconds = now - begin
            else:
                reply.gaps.append(now - last)
            last = now
            parts.append(chunk["choices"][0]["delta"]["content"])
            if len(parts) == leave_after:
                break
    reply.text = "".join(parts)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(len(ordered) * share * 1000) // 1000) - 1))]
