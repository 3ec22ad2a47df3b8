"""One service (engine or gateway) as the supervisor sees it: start, poll, stop, what its log says."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TAIL_BYTES: Final = 256 * 1024
SHOWN_WIDTH: Final = 300  # of a line of the log; SGLang prints all of its settings in one
TERMINAL_CODES: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# The last line of a traceback: a dotted name that ends like an exception's, then its message.
EXCEPTION_LINE: Final = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Unavailable|Refused|Refusal)\b: \S")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """How to run a service.

    Attributes:
        name: what it is called in messages.
        command: program and arguments.
        environment: its whole environment.
        log: file that takes its output.
        stop_grace: seconds between the request to stop and the kill.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    stop_grace: float


class Lifeline:
    """A pipe that breaks when this process ends, however it ends; keepers watch its reading end."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()  # both close on exec; the reading end is handed on by name

    def close(self) -> None:
        """Break the line: every keeper that is still there kills its service."""
        os.close(self._writing)
        os.close(self.reading)


class Service:
    """A service under its keeper. All methods belong to the supervisor's one thread."""

    def __init__(self, spec: ServiceSpec, lifeline: Lifeline) -> None:
        self.spec = spec
        self._lifeline = lifeline
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the keeper, None when nothing runs."""
        return None if self._keeper is None else self._keeper.pid

    def start(self) -> None:
        """Start it; its output is appended to its log.

        Raises:
            OSError: the log cannot be written or no process can be made.
        """
        arguments = [str(self._lifeline.reading), str(self.spec.stop_grace), "--", *self.spec.command]
        with self.spec.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-P", "-m", "lychee_sgl.serve.keeper", *arguments],
                env=self.spec.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self._lifeline.reading,),
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Exit status once it has ended, and from then on nothing runs; None while it runs or was not started."""
        if self._keeper is None:
            return None
        status = self._keeper.poll()
        if status is not None:
            self._keeper = None
        return status

    def stop(self) -> None:
        """Ask it to stop; asked again, it is killed at once."""
        if self._keeper is not None:
            self._keeper.send_signal(signal.SIGTERM)


def describe_status(status: int) -> str:
    """Words for an exit status, either Popen's (-9) or a shell's (137)."""
    number = -status if status < 0 else status - 128
    if number in {s.value for s in signal.Signals}:
        return f"was killed by {signal.Signals(number).name}"
    return f"ended with status {status}"


class LogFollower:
    """Reads what has been appended to a log since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def new_lines(self) -> list[str]:
        """Complete lines that came since the last call, without terminal codes."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [_clean(line) for line in lines]


def meaningful_tail(log: Path, count: int = 8) -> list[str]:
    """The lines of a log that say why a process ended.

    The messages of its last exceptions when there are any (each once), otherwise its last lines.

    Args:
        log: the file; may be missing.
        count: at most so many lines.
    """
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = [_clean(line) for line in stream.read().split(b"\n")]
    except OSError:
        return []
    written = [line for line in lines if line.strip()]
    errors = [line for line in written if EXCEPTION_LINE.match(line)]
    chosen = list(dict.fromkeys(errors))[-3:] or written[-count:]
    return [line if len(line) <= SHOWN_WIDTH else line[:SHOWN_WIDTH] + " ..." for line in chosen]


def _clean(line: bytes) -> str:
    # a progress bar rewrites its line with carriage returns: only the last state counts
    text = line.decode("utf-8", errors="replace").rstrip("\r").rsplit("\r", 1)[-1]
    return TERMINAL_CODES.sub("", text).rstrip()
