"""Follows one answer on its way through: replaces the engine's summary, measures, adds up at the end."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lychee_server.budget import answer_of
from lychee_server.errors import EngineFailed, EngineLost
from lychee_server.schemas import EngineSummary
from lychee_server.sse import DONE, done_event, event_data, glance_object, json_event, parse_object

if TYPE_CHECKING:
    from collections.abc import Callable

    from lychee_server.body import Completion
    from lychee_server.errors import GatewayError
    from lychee_server.metrics import GatewayMetrics
    from lychee_server.schemas import LycheeAnswer

    Learn = Callable[[EngineSummary | None, int], None]

log = logging.getLogger(__name__)


class AnswerTally:
    """What is known of one answer so far.

    Attributes:
        done: the answer is complete.
        failed: the status of an error that the engine wrote into the stream.
        outputs: chunks of a stream that carried output, of all choices.
    """

    def __init__(
        self, completion: Completion, metrics: GatewayMetrics, started: float, learn: Learn | None = None
    ) -> None:
        """Follow an answer.

        Args:
            completion: what was asked.
            metrics: the gateway's.
            started: when the request came in, by `time.perf_counter`.
            learn: is told of a complete answer: the engine's summary and the tokens of the prompt.
        """
        self._completion = completion
        self._learn = learn
        self._metrics = metrics
        self._started = started
        self._summary: EngineSummary | None = None
        self._usage: dict[str, Any] | None = None
        self._begun = False
        self.outputs = 0
        self._last_output: dict[int, float] = {}
        self.done = False
        self.failed: int | None = None

    def event(self, event: bytes) -> bytes:
        """Take one event of a stream and return the bytes to pass on: the same, but for the summary."""
        now = time.perf_counter()
        data = event_data(event)
        if data == DONE:
            self.done = True
            return event
        ours = b'"lychee"' in data
        chunk = parse_object(data) if ours else glance_object(data)
        if chunk is None or (ours and _is_progress(chunk)):
            return event
        self._first(now)
        if chunk.get("error") is not None:
            self.failed = _error_status(chunk["error"])
            if isinstance(chunk["error"], dict) and "code" not in chunk["error"]:
                # a router's own words for a replica that broke
                return json_event(
                    EngineLost("the connection to the engine broke before the answer was complete").body()
                )
        choices = chunk.get("choices")
        if chunk.get("usage") and not choices:  # beside choices it is a running count
            self._usage = chunk["usage"]
        for index in _choices_with_output(choices):
            self._output(index, now)
        return json_event(chunk) if ours and self._reduce(chunk) is not None else event

    def _first(self, now: float) -> None:
        """Take note of an event of the answer, which may be the first."""
        if not self._begun:
            self._begun = True
            self._metrics.first_token(now - self._started)

    def _output(self, index: int, now: float) -> None:
        """Take note of output of a choice."""
        if index in self._last_output:
            self._metrics.token_gap(now - self._last_output[index])
        self._last_output[index] = now
        self.outputs += 1

    def broken(self, error: GatewayError) -> bytes:
        """Write the events that end a stream which broke."""
        return json_event(error.body()) + done_event()

    @property
    def summary(self) -> EngineSummary | None:
        """The engine's account of the answer, once it was there and could be read."""
        return self._summary

    def whole(self, answer: dict[str, Any]) -> LycheeAnswer | None:
        """Take an answer that is not streamed and reduce its summary in place; returns the reduced one."""
        self.done = True
        self._usage = answer.get("usage")
        return self._reduce(answer)

    def finish(self) -> None:
        """Count a complete answer."""
        tokens = self.tokens()
        if tokens is not None:
            self._metrics.tokens(*tokens)
            if self._learn is not None:
                self._learn(self._summary, tokens[0])
        decision = self._completion.decision
        if self._summary is None or decision is None:
            self._metrics.summary_missing()
        else:
            answer = answer_of(decision, self._summary)
            self._metrics.summary(self._summary, answer.reason, answer.rule)

    def _reduce(self, answer: dict[str, Any]) -> LycheeAnswer | None:
        decision = self._completion.decision
        if decision is None or "lychee" not in answer:
            return None
        try:
            self._summary = EngineSummary.model_validate(answer["lychee"])
        except ValidationError as error:
            log.error("the engine's summary cannot be read", extra={"problem": str(error.errors()[0])})
            return None
        reduced = answer_of(decision, self._summary)
        answer["lychee"] = reduced.on_the_wire()
        return reduced

    def tokens(self) -> tuple[int, int] | None:
        """Return prompt and generated tokens; None while they are not known.

        From the usage where the answer has one. Else from the summary: every token but a choice's first took a
        decode step, and the rest of the context is the prompt. The context is that of the longest choice: for
        several choices it does not tell how long the prompts were. Of a document the prompt is all that was read.
        """
        if isinstance(self._usage, dict):
            prompt, generated = self._usage.get("prompt_tokens"), self._usage.get("completion_tokens")
            if type(prompt) is int and type(generated) is int:
                return prompt, generated
        if self._summary is None:
            return None
        choices = self._completion.choices
        generated = self._summary.decode_steps + choices
        if self._summary.memory is not None:
            return self._summary.memory.tokens_read, generated
        prompt = max(0, self._summary.context_tokens - generated) if choices == 1 else 0
        return prompt, generated


def _is_progress(chunk: dict[str, Any]) -> bool:
    """Whether a chunk only says how far the reading of a document is."""
    said = chunk.get("lychee")
    memory = said.get("memory") if isinstance(said, dict) else None
    return isinstance(memory, dict) and "phase" in memory


def _choices_with_output(choices: object) -> list[int]:
    """Return the indexes of the choices to which a chunk adds text, reasoning or a tool call."""
    found = []
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        if choice.get("text") or any(value for key, value in delta.items() if key != "role"):
            index = choice.get("index")
            found.append(index if isinstance(index, int) else 0)
    return found


def _error_status(error: object) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if type(code) is int and 400 <= code <= 599 else EngineFailed.status
