"""SIGTERM to the launcher. Last of this folder: nothing can be asked afterwards."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.e2e.deployment import STOP_SECONDS

if TYPE_CHECKING:
    from tests.e2e.deployment import Deployment

pytestmark = pytest.mark.engine


def test_sigterm_ends_every_process_in_time(deployment: Deployment) -> None:
    family = deployment.family()
    assert len(family) >= 6  # two keepers, gateway, engine, scheduler, detokenizer
    started = time.monotonic()
    assert deployment.terminate() == 0
    assert time.monotonic() - started < STOP_SECONDS
    assert deployment.output.read_text().splitlines()[-1] == "stopped"
    _, left = psutil.wait_procs(family, timeout=1)
    assert left == []
    for url in (deployment.url, deployment.engine_url):
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, timeout=2, trust_env=False)
    state = str(deployment.output.parent)
    assert [
        p.pid for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("XDG_STATE_HOME") == state
    ] == []
