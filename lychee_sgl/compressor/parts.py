"""A step's rows in as few parts as the device's memory takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")


class Parts(Generic[T, R]):
    """Runs work over rows part by part; when memory is out, all over again in twice as many parts, from then on.

    Attributes:
        rows: the most rows of a part.
    """

    def __init__(self, rows: int) -> None:
        """Begins with parts of so many rows."""
        self.rows = rows

    def run(self, rows: Sequence[T], work: Callable[[Sequence[T]], R], again: Callable[[], Any]) -> list[R]:
        """Work through the rows.

        Args:
            rows: one or more.
            work: is given some, in order.
            again: forgets what the parts before have left, when it begins anew.

        Raises:
            torch.OutOfMemoryError: one row is too many.
        """
        while True:
            try:
                return [work(rows[at : at + self.rows]) for at in range(0, len(rows), self.rows)]
            except torch.OutOfMemoryError:
                if min(self.rows, len(rows)) == 1:
                    raise
            # out of the handler, which holds what the failed part had made
            self.rows = (min(self.rows, len(rows)) + 1) // 2
            again()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
