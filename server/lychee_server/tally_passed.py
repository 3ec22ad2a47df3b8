"""Follows answers that pass without a summary: the Responses API and embeddings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lychee_server.errors import EngineFailed
from lychee_server.sse import dump_json, event_data, parse_object
from lychee_server.tally import AnswerTally

if TYPE_CHECKING:
    from lychee_server.errors import GatewayError
    from lychee_server.schemas import LycheeAnswer

_BEFORE_OUTPUT = ("response.created", "response.queued", "response.in_progress")
"""Sent as soon as the request is accepted: long before a first token, where it has to wait or its prompt is long."""
_LAST = ("response.completed", "response.incomplete", "response.failed")


class PassedTally(AnswerTally):
    """Counts times and tokens. Nothing of the answer is changed, and no summary is missed."""

    _events = 0  # so far: the number of the next one

    def event(self, event: bytes) -> bytes:
        """Take one event of a Responses stream; it has no `[DONE]`, its last event says how it ended."""
        chunk = parse_object(event_data(event))
        if chunk is None:
            return event
        self._events += 1
        kind = str(chunk.get("type"))
        if kind not in _BEFORE_OUTPUT:
            self._first(time.perf_counter())
        if kind.endswith(".delta"):
            index = chunk.get("output_index")
            self._output(index if isinstance(index, int) else 0, time.perf_counter())
        elif kind in _LAST:
            self.done = True
            self.failed = EngineFailed.status if kind == "response.failed" else None
            response = chunk.get("response")
            self._usage = _usage(response.get("usage")) if isinstance(response, dict) else None
        return event

    def whole(self, answer: dict[str, Any]) -> LycheeAnswer | None:
        """Take an answer that is not streamed."""
        self.done = True
        self._usage = _usage(answer.get("usage"))
        return None

    def finish(self) -> None:
        """Count a complete answer."""
        tokens = self.tokens()
        if tokens is not None:
            self._metrics.tokens(*tokens)

    def broken(self, error: GatewayError) -> bytes:
        """Write the event that ends a stream which broke, as the Responses API has it."""
        fields = error.body()["error"]
        value = {"type": "error", "code": fields["code"], "message": fields["message"], "param": fields["param"]}
        return b"event: error\ndata: " + dump_json({**value, "sequence_number": self._events}) + b"\n\n"


def _usage(usage: object) -> dict[str, Any] | None:
    """Bring both ways in which SGLang names tokens into one."""
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("input_tokens", usage.get("prompt_tokens"))
    generated = usage.get("output_tokens", usage.get("completion_tokens"))
    return {"prompt_tokens": prompt, "completion_tokens": generated or 0}
