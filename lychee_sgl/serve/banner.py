"""What the operator sees of a deployment: a spinner on a terminal, plain lines elsewhere, and the addresses."""

import json
import shlex
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.markup import escape

from lychee_sgl.serve.config import ServeConfig

if TYPE_CHECKING:
    from rich.status import Status

PLAIN_SECONDS: Final = 15.0  # between two lines about the same stage where there is no terminal


class ConsoleReporter:
    """Tells a person at a terminal, or a log file, how a deployment is doing."""

    def __init__(self, console: Console, config: ServeConfig, name: str, *, verbose: bool) -> None:
        self._console = console
        self._config = config
        self._name = name
        self._verbose = verbose
        self._status: Status | None = None
        self._said = ("", 0.0)
        self._served = False

    def close(self) -> None:
        """Take the spinner away; harmless when there is none."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def waiting(self, stage: str, seconds: float) -> None:
        """Show the stage and for how long it has been going on."""
        text = f"{'starting' if not self._served else 'starting again'}: {stage}"
        if self._console.is_terminal:
            if self._status is None:
                self._status = self._console.status("")
                self._status.start()
            self._status.update(f"{escape(text)} [dim]({seconds:.0f} s)[/dim]")
            return
        last_text, last_time = self._said
        if text != last_text or time.monotonic() - last_time >= PLAIN_SECONDS:
            self._said = (text, time.monotonic())
            self.event(f"{text} ({seconds:.0f} s)")

    def ready(self, seconds: float) -> None:
        """Show the addresses, the first time; afterwards say that it works again."""
        self.close()
        if self._served:
            self.event(f"ready again after {seconds:.0f} s")
            return
        self._served = True
        self._console.print(f"[bold green]ready[/] after {seconds:.0f} s", highlight=False)
        for label, address in addresses(self._config).items():
            self._console.print(f"  {label:<16} {address}", markup=False, highlight=False)
        self._console.print("try it:", highlight=False)
        self._console.print(f"  {curl(self._config, self._name)}", markup=False, highlight=False, soft_wrap=True)
        self._console.print("Ctrl-C stops engine and gateway", highlight=False)

    def event(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def log_line(self, service: str, line: str) -> None:
        """Print a line of a log where that was asked for."""
        if self._verbose:
            self._console.print(f"[{service}] {line}", markup=False, highlight=False, soft_wrap=True)


def addresses(config: ServeConfig) -> dict[str, str]:
    """What can be reached where, by what it is."""
    return {
        "API": f"{config.gateway_url}/v1",
        "API page": f"{config.gateway_url}/docs",
        "gateway metrics": f"{config.gateway_url}/metrics",
        "engine metrics": f"{config.engine_url}/metrics",
    }


def curl(config: ServeConfig, name: str) -> str:
    """A first request, ready for a shell."""
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 32,
        "lychee": {"budget": 512},
    }
    address = f"{config.gateway_url}/v1/chat/completions"
    return shlex.join(
        ["curl", address, "-H", "content-type: application/json", "-d", json.dumps(body, ensure_ascii=False)]
    )
