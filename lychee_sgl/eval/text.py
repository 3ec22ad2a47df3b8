"""The real text that needles are hidden in, as words and sentences. Standard library only, and free of torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lychee_sgl.eval.errors import EvalError
from lychee_sgl.heads.haystack import file_haystack, python_haystack, reference_haystack

if TYPE_CHECKING:
    from lychee_sgl.heads.haystack import Haystack

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(`]?[A-Z])")
BUILT_IN = ("python", "reference")
"""Python's whole documentation (the evaluation half), and its language reference alone, which is there at once."""


@dataclass(frozen=True)
class Prose:
    """A haystack, read when it is first needed.

    Attributes:
        source: one of `BUILT_IN`, or a text file or folder.
    """

    source: str

    @cached_property
    def haystack(self) -> Haystack:
        """The paragraphs.

        Raises:
            EvalError: the file or folder cannot be read, or holds no prose.
        """
        if self.source == "python":
            return python_haystack("evaluation")
        if self.source == "reference":
            return reference_haystack("evaluation")
        try:
            if not Path(self.source).exists():
                raise EvalError(
                    f"haystack is {self.source!r}; allowed: {', '.join(BUILT_IN)}, or a text file or folder that exists"
                )
            return file_haystack(Path(self.source))
        except (OSError, ValueError) as error:
            raise EvalError(str(error)) from error

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words in order, split at white space."""
        return tuple(" ".join(self.haystack.paragraphs).split())

    def first(self, count: int) -> str:
        """The first `count` words; from the beginning again where there are not as many."""
        words = self.words
        repeats = -(-count // len(words))
        return " ".join((words * repeats)[:count])


def sentences(text: str) -> list[str]:
    """Cut prose after a full stop, question mark or exclamation mark with a capital behind it."""
    return SENTENCE_END.split(text.strip())
