"""The process between supervisor and service: when either ends, everything below it ends.

Run as `python -m lychee_sgl.serve.keeper LIFELINE GRACE -- COMMAND...`. LIFELINE is the reading end of a pipe whose
writing end only the supervisor holds, so that end-of-file means that the supervisor is gone, however it went.
SIGTERM asks the service to stop and kills it after GRACE seconds; a second SIGTERM kills at once. The exit status is
the service's, or 128 + the number of the signal that ended it.
"""

import logging
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

from lychee_sgl.serve.reaper import adopt_orphans, die_with_parent, kill_children

logger = logging.getLogger("lychee.keeper")


def keep(lifeline: int, grace: float, command: list[str]) -> int:
    """Run a command until it ends, SIGTERM arrives or the lifeline breaks; then end all that it started.

    Args:
        lifeline: file descriptor that becomes readable (end-of-file) when the supervisor is gone.
        grace: seconds between the request to stop and the kill.
        command: what to run.

    Returns:
        The exit status to pass on.
    """
    adopt_orphans()
    wakeup = _wake_on(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
    try:
        # preexec_fn is safe here: this process has one thread
        service = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)
    except OSError as error:
        logger.error("cannot run %s: %s", command[0], error)
        return 127
    status = _wait(service.pid, lifeline, wakeup, grace)
    left = kill_children()
    if left:
        logger.error("processes %s cannot be killed", left)
    return 128 + signal.SIGKILL if status is None else _exit_code(status)


def _wait(pid: int, lifeline: int, wakeup: int, grace: float) -> int | None:
    """Wait for the service's wait status; None when it has to be killed."""
    deadline: float | None = None
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        events = dict(poll.poll(None if left is None else left * 1000))
        if lifeline in events:
            return None
        received = os.read(wakeup, 4096) if wakeup in events else b""
        status = _collect(pid)
        if status is not None:
            return status
        asked = received.count(signal.SIGTERM) + received.count(signal.SIGINT)
        if asked:
            if deadline is not None or asked > 1:
                return None
            deadline = time.monotonic() + grace
            os.kill(pid, signal.SIGTERM)
        elif deadline is not None and time.monotonic() >= deadline:
            return None


def _collect(service: int) -> int | None:
    """Reap every dead child, adopted ones too; the service's wait status when it was among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == service:
            found = status


def _wake_on(*signals: signal.Signals) -> int:
    """Have signals write their number into a pipe; returns its reading end."""

    def ignore(number: int, frame: FrameType | None) -> None:
        """A handler must exist for the number to be written."""

    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, ignore)
    return reading


def _exit_code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    logging.basicConfig(format="%(name)s: %(message)s")
    separator = sys.argv.index("--")
    sys.exit(keep(int(sys.argv[1]), float(sys.argv[2]), sys.argv[separator + 1 :]))
