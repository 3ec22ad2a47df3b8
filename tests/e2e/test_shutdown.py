"""SIGTERM to the launcher. Last of this folder: nothing can be asked afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

if TYPE_CHECKING:
    from tests.e2e.deployment import Deployment

pytestmark = pytest.mark.engine


def test_sigterm_ends_every_process_in_time(deployment: Deployment) -> None:
    family = deployment.family()
    assert len(family) >= 6  # two keepers, gateway, engine, scheduler, detokenizer
    assert deployment.terminate() == 0  # within STOP_SECONDS
    assert deployment.output.read_text().splitlines()[-1] == "stopped"
    _, left = psutil.wait_procs(family, timeout=30)
    assert left == []
    for url in (deployment.url, deployment.engine_url):
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, timeout=2, trust_env=False)
    state = str(deployment.output.parent)
    assert [
        p.pid for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("XDG_STATE_HOME") == state
    ] == []
