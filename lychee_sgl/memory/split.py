"""Which part of a chat is the document, and which the question (DESIGN.md section 13)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_QUESTION = ("?", "\uff1f", "\u061f")


class Refused(ValueError):
    """A request that cannot be read block by block.

    Attributes:
        param: the field at fault.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A chat taken apart.

    Attributes:
        system: contents of its system messages.
        document: what is read.
        question: what is asked.
    """

    system: tuple[str, ...]
    document: str
    question: str


def take_apart(messages: Sequence[Mapping[str, Any]]) -> Chat:
    """Finds document and question.

    Args:
        messages: as in OpenAI's chat completions: roles `system`, `developer` and `user`, content a text or text parts.

    Raises:
        Refused: there is something else in them, no user message, or one paragraph alone.
    """
    system: list[str] = []
    asked: list[str] = []
    for number, message in enumerate(messages):
        role = message.get("role")
        texts = _texts(message.get("content"), f"messages[{number}].content")
        if role in ("system", "developer"):
            system.extend(texts)
        elif role == "user":
            asked.extend(texts)
        else:
            field = f"messages[{number}].role"
            allowed = '"system", "developer" and "user" where a document is read block by block'
            raise Refused(f"{field} is {str(role)[:40]!r}; allowed: {allowed}", field)
    asked = [text.strip() for text in asked if text.strip()]
    if len(asked) > 1:
        longest = max(range(len(asked)), key=lambda i: len(asked[i]))
        rest = [text for i, text in enumerate(asked) if i != longest]
        return Chat(system=tuple(system), document=asked[longest], question="\n\n".join(rest))
    document, question = _by_paragraph(asked[0] if asked else "")
    return Chat(system=tuple(system), document=document, question=question)


def _texts(content: object, field: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else [None]
    texts = []
    for number, part in enumerate(parts):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise Refused(
                f"{field}[{number}] is no text; allowed: texts where a document is read block by block", field
            )
        texts.append(text)
    return texts


def _by_paragraph(text: str) -> tuple[str, str]:
    """Splits one text: the question is its last paragraph, or its first where only that ends with a question mark."""
    breaks = list(_PARAGRAPH.finditer(text))
    if not breaks:
        raise Refused(
            "messages: the user's text is one paragraph, so it is not clear what is the document and what the "
            "question; put them into two text parts, or the question into a last paragraph of its own",
            "messages",
        )
    first, last = text[: breaks[0].start()].strip(), text[breaks[-1].end() :].strip()
    if first.endswith(_QUESTION) and not last.endswith(_QUESTION):
        return text[breaks[0].end() :].strip(), first
    return text[: breaks[-1].start()].strip(), last
