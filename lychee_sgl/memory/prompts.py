"""The texts that the loop sends. They begin with the block, so that its KV serves every question."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lychee_sgl.memory.blocks import Compressed
from lychee_sgl.memory.model import Inlay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lychee_sgl.memory.model import Model

VERSION: Final = 1
"""Raised with every change of a text: steps of another version are not reused."""

_MARK: Final = "\u2403block\u2403"
_ABSENT: Final = re.compile(
    r"\bnot (?:found|mentioned|stated|given|provided|specified|known|in the (?:text|notes))\b"
    r"|\b(?:no|does not|doesn't|do not|don't) (?:information|answer|mention|say|contain|provide|know)\b|^\s*none\b",
    re.IGNORECASE,
)
_NUMBER: Final = re.compile(r"\d[\d,.:/-]*\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A prompt with room for tokens: what stands before them, and behind."""

    head: tuple[int, ...]
    tail: tuple[int, ...]

    def around(self, context: Iterable[int] | Compressed) -> list[int]:
        """Gives the whole prompt; where embeddings stand, `inlay` says which, and a token holds each one's place."""
        tokens = context.placeholders if isinstance(context, Compressed) else context
        return [*self.head, *tokens, *self.tail]

    def inlay(self, context: Iterable[int] | Compressed) -> Inlay | None:
        """Gives the embeddings of the whole prompt, if it has any."""
        if not isinstance(context, Compressed) or not context.count:
            return None
        return Inlay(at=len(self.head), count=context.count, vectors=context.vectors, digest=context.digest)

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)


def frame(model: Model, behind: str) -> Frame:
    """Renders a chat of one user message: room for a block, then a text.

    Raises:
        ValueError: the model's chat template does not keep the message as it is.
    """
    rendered = model.render([{"role": "user", "content": _MARK + behind}])
    if rendered.count(_MARK) != 1 + behind.count(_MARK):
        raise ValueError("the model's chat template repeats or drops the message: it cannot read block by block")
    # a text may hold the mark itself: ours is the first
    before, _, after = rendered.partition(_MARK)
    head, tail = model.encode([before, after])
    return Frame(head=tuple(head), tail=tuple(tail))


def quote(question: str, notes: str) -> str:
    """Asks for what a block says on the question."""
    known = f"What is known so far:\n{notes}\n\n" if notes else ""
    return (
        f"\n\n{known}Question: {question}\n"
        "Copy the sentences of the text above that help to answer the question, word for word. "
        'If there are none, write "none".'
    )


def ask(question: str, notes: str = "") -> str:
    """Asks the question itself of what stands before it."""
    return f"\n\n{notes}\n\n{question}" if notes else f"\n\n{question}"


def answer(question: str, notes: str) -> str:
    """The last user message: notes in place of the document."""
    if not notes:
        return f"A long document was read for this question, and nothing that answers it was found in it.\n\n{question}"
    return f"{notes}\n\n{question}"


def says_absent(reply: str, notes: str) -> bool:
    """Whether a draft says that the notes do not have the answer, or gives a number that does not stand in them."""
    if not reply.strip() or _ABSENT.search(reply):
        return True
    return any(number not in notes for number in _NUMBER.findall(reply))
