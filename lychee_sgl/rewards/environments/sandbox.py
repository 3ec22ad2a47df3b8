"""Runs a command on a folder's files where it can do little harm. Standard library only; Linux.

Three kinds of walls, the best that works here by default. None of them is a virtual machine: what each does not stop is
in `Sandbox.does_not_stop`, and a policy that is trained to attack wants more than any of them.
"""

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final


class Isolation(StrEnum):
    """Kinds of walls, the strongest first."""

    BUBBLEWRAP = "bubblewrap"
    NAMESPACES = "namespaces"
    PROCESS = "process"


class SandboxUnavailable(RuntimeError):
    """The walls that were asked for cannot be had here; the message says what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a command may use.

    Attributes:
        seconds: of the clock; then all of it is killed.
        cpu_seconds: of the processor, for each process.
        memory: bytes of address space, for each process.
        file: bytes of the largest file, its output included.
        processes: at one time; not held for `process`, where other programs of the same user would count.
        output: bytes of its output that are kept, the last ones.
    """

    seconds: float = 20.0
    cpu_seconds: int = 10
    memory: int = 1 << 30
    file: int = 16 << 20
    processes: int = 64
    output: int = 16 << 10

    def __post_init__(self) -> None:
        for name in ("seconds", "cpu_seconds", "memory", "file", "processes", "output"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: a number above 0")


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended.

    Attributes:
        status: its exit status, negative for a signal; None: it was killed after `Limits.seconds`.
        output: the end of what it wrote to both streams.
        seconds: it took.
    """

    status: int | None
    output: str
    seconds: float


_SHARED: Final = (
    "it runs on the same kernel: a hole in that is a way out",
    "no limit holds for all of its processes together: memory and processor time are bounded one by one",
    "files are bounded one by one: with many it can fill the disk that its folder lies on",
    "as root, where the kernel exempts root from it, the limit on processes is none",
)
_OPEN: Final = {
    Isolation.BUBBLEWRAP: (
        "it can read the system's programs and libraries, and the Python that runs it with what is installed there",
        *_SHARED,
    ),
    Isolation.NAMESPACES: (
        "it can read every file that this user can read, and write where this user can write",
        "it can talk to local services through their sockets in the file system (a container engine's, say)",
        *_SHARED,
    ),
    Isolation.PROCESS: (
        "it can use the network",
        "it can read every file that this user can read, and write where this user can write",
        "it can see and signal this user's other processes, and leave one behind that left its session",
        "the limit on processes is not held",
        *_SHARED[:3],
    ),
}

_LONGEST_DEATH: Final = 10.0  # seconds

# Sets its limits from inside the walls, then becomes the command.
_LAUNCH: Final = (
    "import json,os,resource,sys\n"
    "for name,value in json.loads(sys.argv[1]): resource.setrlimit(name,(value,value))\n"
    "os.execv(sys.argv[2],sys.argv[2:])"
)
_UNSHARE: Final = ("--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")


class Sandbox:
    """Walls and limits for commands."""

    def __init__(self, limits: Limits | None = None, isolation: Isolation | str | None = None) -> None:
        """Chooses the walls.

        Args:
            limits: what a command may use.
            isolation: which walls; None: bubblewrap, else namespaces. Plain processes only by name.

        Raises:
            SandboxUnavailable: they cannot be had here.
            ValueError: there is no such kind.
        """
        self.limits = limits or Limits()
        if isolation is None:
            self.isolation = _best()
        else:
            allowed = [str(kind) for kind in Isolation]
            if isolation not in allowed:
                raise ValueError(f"isolation is {isolation!r}; allowed: {', '.join(allowed)}")
            self.isolation = Isolation(isolation)
            if not _works(self.isolation):
                raise SandboxUnavailable(f"isolation {self.isolation} does not work here: {_WANTED[self.isolation]}")

    @property
    def does_not_stop(self) -> tuple[str, ...]:
        """What a command can still do, a sentence each."""
        return _OPEN[self.isolation]

    def run(self, command: tuple[str, ...], folder: Path, stdin: str = "") -> Finished:
        """Run a command in a folder.

        Args:
            command: the program, an absolute path, and its arguments.
            folder: where it starts; under bubblewrap the only place that outlives it.
            stdin: what it can read.

        Raises:
            ValueError: the program is no absolute path.
            OSError: it could not be started.
        """
        if not command or not os.path.isabs(command[0]):
            raise ValueError(f"command is {command}; allowed: an absolute path and arguments")
        started = time.monotonic()
        # out into a file: the limit on files bounds what a command can make us keep; in through a pipe: what has been
        # read from it is gone, so code that runs later in the same process cannot read it again
        with tempfile.TemporaryFile() as heard:
            argv = _argv(self.isolation, self.limits, command, folder)
            process = subprocess.Popen(
                argv, cwd=folder, stdin=subprocess.PIPE, stdout=heard, stderr=subprocess.STDOUT,
                env=_environment(folder), start_new_session=True, close_fds=True,
            )  # fmt: skip
            try:
                process.communicate(stdin.encode(), self.limits.seconds)
                status: int | None = process.returncode
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            size = heard.seek(0, os.SEEK_END)
            heard.seek(max(0, size - self.limits.output))
            output = heard.read().decode(errors="replace")
        return Finished(status, output, time.monotonic() - started)


def _argv(isolation: Isolation, limits: Limits, command: tuple[str, ...], folder: Path) -> list[str]:
    held = [
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_FSIZE, limits.file),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ]
    if isolation is not Isolation.PROCESS:
        held.append((resource.RLIMIT_NPROC, limits.processes))
    inside = [sys.executable, "-I", "-S", "-c", _LAUNCH, json.dumps(held), *command]
    match isolation:
        case Isolation.BUBBLEWRAP:
            return [*_bubblewrap(folder.resolve()), *inside]
        case Isolation.NAMESPACES:
            return [_found("unshare"), *_UNSHARE, "--", *inside]
        case Isolation.PROCESS:
            return inside


_WANTED: Final = {
    Isolation.BUBBLEWRAP: "install bubblewrap, and allow user namespaces",
    Isolation.NAMESPACES: "install util-linux (unshare), and allow user namespaces",
    Isolation.PROCESS: "needs Linux",
}


def _bubblewrap(folder: Path) -> list[str]:
    argv = [_found("bwrap"), "--unshare-all", "--die-with-parent", "--new-session", "--dev", "/dev", "--proc", "/proc"]
    argv += ["--cap-drop", "ALL"]  # root would keep them all, and mount over the walls
    argv += ["--tmpfs", tempfile.gettempdir()]
    system = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
    for place in dict.fromkeys((*system, sys.prefix, sys.base_prefix)):
        argv += ["--ro-bind-try", place, place]
    return [*argv, "--bind", str(folder), str(folder), "--chdir", str(folder), "--"]


def _environment(folder: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


def _found(program: str) -> str:
    place = shutil.which(program)
    if place is None:
        raise SandboxUnavailable(f"{program} is not installed")
    return place


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left, and wait until it is gone: its folder is removed next.

    A namespace of processes ends with its first one, which is the child of the program that made it.
    """
    firsts = []
    if process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        firsts = [os.pidfd_open(int(pid)) for pid in children]
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in the session
        os.killpg(process.pid, signal.SIGKILL)
    for first in firsts:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(first, signal.SIGKILL)
        select.select([first], [], [], _LONGEST_DEATH)
        os.close(first)
    process.wait()


def remove(folder: Path) -> None:
    """Remove what a command left, whatever it is: `shutil.rmtree` gives up on a thousand folders in one another.

    Raises:
        OSError: something cannot be removed.
    """
    if os.getuid():  # root needs no permissions; links are not followed
        subprocess.run(["chmod", "-R", "u+rwX", "--", str(folder)], check=False, capture_output=True)
    ended = subprocess.run(["rm", "-rf", "--", str(folder)], check=False, capture_output=True, text=True)
    if folder.exists():
        raise OSError(f"{folder} cannot be removed: {ended.stderr[:300].strip()}")


@cache
def _works(isolation: Isolation) -> bool:
    """Whether these walls stand here: tried once, by running `true` behind them."""
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            argv = _argv(isolation, Limits(), (_found("true"),), folder)
            ended = subprocess.run(argv, cwd=folder, env=_environment(folder), capture_output=True, timeout=30)
            return ended.returncode == 0
    except (OSError, subprocess.TimeoutExpired, SandboxUnavailable):
        return False


def _best() -> Isolation:
    for kind in (Isolation.BUBBLEWRAP, Isolation.NAMESPACES):
        if _works(kind):
            return kind
    raise SandboxUnavailable(
        "neither bubblewrap nor unshare works here, so a command could use the network: install bubblewrap and allow "
        "user namespaces, or ask for plain processes by name (isolation 'process')"
    )
