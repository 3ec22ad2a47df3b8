"""Runs a Supervisor over two scripted services and prints what it reports, one JSON line an event.

Arguments: folder for logs, and a JSON object with engine, gateway (settings of service.py), grace, start_timeout.
"""

import json
import os
import sys
from pathlib import Path

from lychee_sgl.serve.process import ServiceSpec
from lychee_sgl.serve.ready import Probe
from lychee_sgl.serve.supervisor import StartFailed, Supervisor

folder = Path(sys.argv[1])
settings = json.loads(sys.argv[2])


class Printer:
    def _say(self, kind: str, **more: object) -> None:
        sys.stdout.write(json.dumps({"kind": kind, **more}) + "\n")
        sys.stdout.flush()

    def waiting(self, stage: str, seconds: float) -> None:
        """Too often to print."""

    def ready(self, seconds: float) -> None:
        self._say("ready")

    def event(self, text: str) -> None:
        self._say("event", text=text)

    def log_line(self, service: str, line: str) -> None:
        self._say("log", service=service, line=line)

    def failed(self, text: str) -> None:
        self._say("failed", text=text)


def spec(name: str) -> ServiceSpec:
    program = str(Path(__file__).with_name("service.py"))
    return ServiceSpec(
        name=name,
        command=(sys.executable, program, json.dumps({"name": name, **settings[name]})),
        environment=dict(os.environ),
        log=folder / f"{name}.log",
        stop_grace=settings["grace"],
    )


probes = [Probe(f"http://127.0.0.1:{settings[name]['port']}/") for name in ("engine", "gateway")]
printer = Printer()
supervisor = Supervisor(
    spec("engine"),
    spec("gateway"),
    lambda: all(probe() for probe in probes),
    printer,
    start_timeout=settings["start_timeout"],
)
try:
    supervisor.run()
except StartFailed as error:
    printer.failed(str(error))
    sys.exit(1)
