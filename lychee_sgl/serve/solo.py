"""One engine without a gateway, for measurements and tests: started, waited for, stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from typing import TYPE_CHECKING

from lychee_sgl.models.embedded import ensure_unpacked
from lychee_sgl.serve.config import ServeConfig, engine_service
from lychee_sgl.serve.process import Lifeline, Service, meaningful_tail
from lychee_sgl.serve.ready import Probe
from lychee_sgl.serve.supervisor import StartFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

START_SECONDS = 600.0


def free_port() -> int:
    """Finds a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def solo_engine(
    state: Path,
    *,
    backend: str = "lychee",
    model: str | None = None,
    engine_args: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
    accelerator: bool = False,
    tp: int = 1,
) -> Iterator[str]:
    """Runs an engine as `lychee-sgl serve` would, for the time of a block.

    Args:
        state: folder for its log, `<backend>.log`.
        backend: SGLang's attention backend.
        model: folder or id; the embedded model by default.
        engine_args: further arguments of SGLang.
        environ: further environment.
        accelerator: whether this machine has a GPU that SGLang will use.
        tp: tensor-parallel ranks.

    Yields:
        The engine's address.

    Raises:
        StartFailed: it ended, or was not ready in time; the message has the end of its log.
    """
    config = ServeConfig(engine_port=free_port(), engine_args=engine_args, tp=tp)
    folder = model or str(ensure_unpacked(lambda _: None))
    spec = engine_service(
        config,
        folder,
        "SmolLM2-135M-Instruct",
        accelerator=accelerator,
        state=state,
        environ={**os.environ, **(environ or {})},
    )
    flag = spec.command.index("--attention-backend")
    command = (*spec.command[: flag + 1], backend, *spec.command[flag + 2 :])
    service = Service(
        dataclasses.replace(spec, command=command, log=state / f"{backend}-{config.engine_port}.log"),
        lifeline := Lifeline(),
    )
    service.start()
    try:
        _wait(service, config.engine_url)
        yield config.engine_url
    finally:
        service.stop()
        end = time.monotonic() + spec.stop_grace + 10
        while service.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        lifeline.close()


def _wait(service: Service, address: str) -> None:
    end = time.monotonic() + START_SECONDS
    with contextlib.closing(Probe(f"{address}/health", timeout=5.0)) as ready:
        while time.monotonic() < end:
            status = service.poll()
            if status is not None:
                tail = "\n".join(meaningful_tail(service.spec.log))
                raise StartFailed(f"the engine ended with status {status} before it was ready:\n{tail}")
            if ready():
                return
            time.sleep(0.3)
    raise StartFailed(f"the engine was not ready after {START_SECONDS:.0f} s; see {service.spec.log}")
