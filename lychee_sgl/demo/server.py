"""The server that the demo talks to: the one that runs at the address, or one started for the time of the demo."""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Final

import httpx

from lychee_sgl.demo.client import LOCAL_HOSTS
from lychee_sgl.demo.errors import DemoError
from lychee_sgl.serve.reaper import die_with_parent
from lychee_sgl.serve.solo import free_port

START_SECONDS: Final = 900.0
STOP_SECONDS: Final = 90.0  # the gateway's drain and the engine's grace, with a margin
PAUSE_SECONDS: Final = 0.5

Say = Callable[[str], None]


@contextlib.contextmanager
def server_at(url: str, say: Say, *, patience: float = START_SECONDS) -> Iterator[None]:
    """Have a ready server at an address for the time of a block.

    Args:
        url: the gateway's address.
        say: gets a line for each stage.
        patience: seconds until a server that is not ready is given up.

    Raises:
        DemoError: nothing runs there and nothing can be started, or what runs there never becomes ready.
    """
    if ready_status(url) is not None:
        _wait_ready(url, say, patience, None, None)
        yield
        return
    with _started(url, say, patience):
        yield


def ready_status(url: str) -> int | None:
    """Status of the gateway's `/readyz`; None when nobody listens at the address.

    Raises:
        DemoError: the address is no address.
    """
    try:
        return httpx.get(f"{url.rstrip('/')}/readyz", timeout=10, trust_env=not _is_local(url)).status_code
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return None
    except httpx.TimeoutException:
        return httpx.codes.SERVICE_UNAVAILABLE
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise DemoError(f"--url {url}: {error}; allowed: an address like http://127.0.0.1:8000") from error


def serve_command(url: str) -> list[str]:
    """The command that serves the embedded model at an address.

    Raises:
        DemoError: the address is on another machine, or not plain http with a port.
    """
    parts = httpx.URL(url)
    if not _is_local(url) or parts.scheme != "http" or parts.port is None:
        raise DemoError(f"nothing answers at {url}, and a server is started only at http://127.0.0.1:PORT")
    ports = ["--port", str(parts.port), "--engine-port", str(free_port())]
    return [sys.executable, "-P", "-c", "from lychee_sgl.cli import main; main()", "serve", *ports]


@contextlib.contextmanager
def _started(url: str, say: Say, patience: float) -> Iterator[None]:
    command = serve_command(url)
    with tempfile.TemporaryFile("w+") as output:
        # a session of its own: Ctrl-C reaches the demo alone, which then stops the server in order
        server = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, preexec_fn=die_with_parent
        )
        try:
            _wait_ready(url, say, patience, server, output)
            yield
        finally:
            say("stopping the server")
            _stop(server)


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()  # its services notice and end themselves
        server.wait()


def _wait_ready(
    url: str, say: Say, patience: float, server: subprocess.Popen[bytes] | None, output: IO[str] | None
) -> None:
    start = time.monotonic()
    while (status := ready_status(url)) != httpx.codes.OK:
        waited = time.monotonic() - start
        if server is not None and output is not None and server.poll() is not None:
            output.seek(0)
            raise DemoError(f"no server runs at {url}, and none could be started:\n{output.read().strip()}")
        if status not in (None, httpx.codes.SERVICE_UNAVAILABLE):
            raise DemoError(f"--url {url}: /readyz answers {status}; is that a gateway of lychee-sgl?")
        if waited > patience:
            raise DemoError(f"the server at {url} is not ready after {patience:.0f} s")
        say(f"{'waiting for' if server is None else 'starting'} a server at {url} ({waited:.0f} s)")
        time.sleep(PAUSE_SECONDS)


def _is_local(url: str) -> bool:
    return httpx.URL(url).host in LOCAL_HOSTS
