import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

PROGRAMS = Path(__file__).parent / "programs"


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Deployment:
    """A supervisor in a process of its own, over two scripted services."""

    def __init__(self, folder: Path, *, grace: float = 5.0, start_timeout: float = 60.0, **services: Any) -> None:
        self.folder = folder
        self.diary = folder / "diary"
        self.output = folder / "output"
        settings: dict[str, Any] = {"grace": grace, "start_timeout": start_timeout}
        self._ports = contextlib.ExitStack()
        for name in ("engine", "gateway"):
            # held without listening, also while a service is started again: nobody else gets it, the service may
            held = self._ports.enter_context(socket.socket())
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(("127.0.0.1", 0))
            port = int(held.getsockname()[1])
            settings[name] = {"port": port, "diary": str(self.diary), **services.get(name, {})}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAMS / "supervise.py"), str(folder), json.dumps(settings)],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _lines(self, path: Path) -> list[dict[str, Any]]:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self._lines(self.output) if line["kind"] == kind]

    def diary_of(self, service: str, event: str) -> list[dict[str, Any]]:
        return [line for line in self._lines(self.diary) if (line["service"], line["event"]) == (service, event)]

    def pid(self, service: str) -> int:
        return int(self.diary_of(service, "start")[-1]["pid"])

    def grandchild(self, service: str) -> int:
        return int(self.diary_of(service, "start")[-1]["grandchild"])

    def keeper(self, service: str) -> int:
        return psutil.Process(self.pid(service)).ppid()

    def all_pids(self) -> list[int]:
        starts = [line for name in ("engine", "gateway") for line in self.diary_of(name, "start")]
        return [pid for line in starts for pid in (int(line["pid"]), int(line["grandchild"]))]

    def wait_ready(self, times: int = 1) -> None:
        wait_for(lambda: len(self.said("ready")) >= times, f"ready {times} time(s): {self.output.read_text()}")

    def wait_gone(self) -> None:
        wait_for(lambda: not any(alive(pid) for pid in self.all_pids()), "every process gone")

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def clean_up(self) -> None:
        self._ports.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.all_pids():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    made: list[Deployment] = []

    def make(**settings: Any) -> Deployment:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Deployment(folder, **settings))
        return made[-1]

    yield make
    for deployment in made:
        deployment.clean_up()
