"""Ends whole process trees, orphans included. Linux only: it leans on the kernel's child subreapers."""

import ctypes
import os
import signal
import time
from typing import Final

import psutil

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
PAUSE_SECONDS: Final = 0.02


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def adopt_orphans() -> None:
    """Have every descendant whose parent dies become a child of this process."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends. For a child, between fork and exec."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_children(*, spare: frozenset[int] = frozenset(), patience: float = 10.0) -> list[int]:
    """Kill all descendants of this process and reap them.

    A process may fork while it is being killed, and its children then come to us: hence the repetition.

    Args:
        spare: children of this process that stay, with all below them.
        patience: seconds after which processes that cannot be killed (stuck in the kernel) are given up.

    Returns:
        Process ids of those given up; empty in every normal case.
    """
    deadline = time.monotonic() + patience
    while True:
        children = [child for child in psutil.Process().children() if child.pid not in spare]
        for child in children:
            _kill_tree(child)
        left = [child.pid for child in children if not _reap(child.pid)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(PAUSE_SECONDS)


def _kill_tree(process: psutil.Process) -> None:
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


def _reap(pid: int) -> bool:
    """Collect a dead child; False while it still runs."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True  # somebody else's business by now
