"""How reading a document for an answer can end without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lychee_sgl.memory.step import BlockFailed

if TYPE_CHECKING:
    from collections.abc import Mapping


class ClientGone(Exception):
    """The client has closed its connection."""


class AnswerRefused(Exception):
    """SGLang's handler refused the request for the answer, when the stream had begun.

    Attributes:
        kind: SGLang's name for what went wrong.
        status: the HTTP status that it would have been.
    """

    def __init__(self, body: Mapping[str, Any], status: int) -> None:
        """Takes SGLang's answer."""
        super().__init__(body.get("message", "the answer was refused"))
        self.kind, self.status = str(body.get("type", "BadRequest")), status


def told(error: AnswerRefused | BlockFailed | ValueError) -> tuple[str, str, int]:
    """Gives what a stream says of an error: message, type, status."""
    if isinstance(error, AnswerRefused):
        return str(error), error.kind, error.status
    return (str(error), "BlockFailed", 500) if isinstance(error, BlockFailed) else (str(error), "BadRequest", 400)
