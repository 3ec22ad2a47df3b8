"""A circuit breaker: an engine that fails again and again gets a pause."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Breaker:
    """Opens after so many failures in a row; after a pause it lets one request try, whose outcome decides.

    Libraries wrap a call and judge its exception. Here a request's verdict comes from several places (status line,
    stream, client that leaves), and some requests end without one, so the few states are kept by hand.
    """

    def __init__(self, failures: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start closed.

        Args:
            failures: so many in a row open it.
            pause: seconds until one request may try.
            clock: seconds that only grow.
        """
        self._limit = failures
        self._pause = pause
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._trying = False

    @property
    def open(self) -> bool:
        """Whether the engine is in its pause, or being tried after it."""
        return self._opened_at is not None

    def allows(self) -> bool:
        """Whether a request may go through now."""
        if self._opened_at is None:
            return True
        return not self._trying and self._clock() - self._opened_at >= self._pause

    def begin(self) -> None:
        """A request goes through; of an open breaker it is the one that tries."""
        self._trying = self.open

    def succeeded(self) -> None:
        """The engine did what it was asked, or refused it in words."""
        self._failures, self._opened_at, self._trying = 0, None, False

    def answering(self) -> None:
        """The engine has begun an answer: of an open breaker, that is enough of a try. A later break is a failure."""
        if self._trying:
            self.succeeded()

    def failed(self) -> None:
        """The engine failed on a request."""
        self._failures += 1
        self._trying = False
        if self._failures >= self._limit:
            self._opened_at = self._clock()

    def abandoned(self) -> None:
        """A request ended without a verdict on the engine: its client left."""
        self._trying = False
