"""Bounded concurrency: so many requests at the engine, and no more."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from lychee_server.errors import TooManyRequests

if TYPE_CHECKING:
    from collections.abc import Iterator


class Admission:
    """Counts the requests in flight. All calls are made on the event loop, so a plain number does."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            TooManyRequests: all are taken.
        """
        if self._taken >= self._limit:
            raise TooManyRequests(f"{self._limit} requests are in flight already; try again later")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
