"""What SIGHUP reads again: a bad file is refused by its owner, and what was read before stays in force."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Reloads:
    """What is to be done on SIGHUP, in the order in which it was added."""

    def __init__(self) -> None:
        self._loaders: list[Callable[[], object]] = []

    def add(self, load: Callable[[], object]) -> None:
        """Add a file: `load` reads and checks it, puts it in force or keeps the old one, and logs which."""
        self._loaders.append(load)

    def run(self) -> None:
        """Read everything again."""
        for load in self._loaders:
            load()

    @contextlib.contextmanager
    def on_sighup(self) -> Iterator[None]:
        """Run on every SIGHUP for the time of a block; only in a main thread, as signals go nowhere else."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.run)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a process that shuts down must not die of it
