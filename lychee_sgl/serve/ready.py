"""Is it up yet: probes over HTTP, ports, and what an engine's log says about how far its start has come."""

import errno
import socket
from collections.abc import Collection
from typing import Final

import httpx

# SGLang's log while it starts, in the order of its lines, and what they mean to someone who waits.
STAGES: Final = (
    ("server_args=", "starting the scheduler"),
    ("Load weight begin", "loading the weights"),
    ("Load weight end", "setting aside memory for the KV cache"),
    ("max_total_num_tokens=", "starting the HTTP server"),
    ("Uvicorn running", "warming up with a first request"),
    ("ready to roll", "waiting for the gateway"),
)
FIRST_STAGE: Final = "importing SGLang"


class Probe:
    """Asks one address whether it answers 200, or another status that will do."""

    def __init__(self, url: str, *, timeout: float = 2.0, statuses: Collection[int] = (200,)) -> None:
        self._url, self._statuses = url, statuses
        # never through a proxy of the environment: what is asked is on this machine
        self._client = httpx.Client(timeout=timeout, trust_env=False)

    def __call__(self) -> bool:
        """Whether the address answers so now."""
        try:
            return self._client.get(self._url).status_code in self._statuses
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def later_stage(stage: str, lines: list[str]) -> str:
    """The stage after some more lines of the engine's log.

    Args:
        stage: the stage so far.
        lines: new lines; those that say nothing about the start leave the stage as it is.
    """
    for line in lines:
        for needle, words in STAGES:
            if needle in line:
                stage = words
    return stage


def port_problem(host: str, port: int) -> str | None:
    """Why a server cannot listen there, in a few words; None when it can.

    Args:
        host: name or address to listen on.
        port: the port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)  # with SO_REUSEADDR a bind alone may succeed beside a listener
    except socket.gaierror as error:
        return f"{host} is not an address ({error.strerror})"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} on {host} is taken by another program"
        return f"cannot listen on port {port} of {host} ({error.strerror})"
    return None


def url(host: str, port: int) -> str:
    """Address under which a server listening on `host` can be reached from this machine."""
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
