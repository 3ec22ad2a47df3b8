"""How long a prompt is in tokens, before the engine has read it: an estimate from its bytes, with its margin."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

_BYTES_PER_TOKEN = 4.0  # without evidence; prose has 3 to 5
_TRUST_BYTES = 2000.0  # how much text that is worth
_MARGIN = 0.35  # relative error of one estimate without evidence
_TRUST_ANSWERS = 4.0  # how many answers that is worth
_MEMORY = 200.0
_DEVIATIONS = 2.5
_SLACK = 32  # tokens of templates and of text too short to average out
_MESSAGE_TOKENS = 5  # what a chat template puts around a message
_MODELS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptText:
    """What of a request becomes its prompt.

    Attributes:
        size: bytes of text; of a batch, of its longest prompt.
        overhead: tokens that a template adds.
        tokens: the length itself, where the prompt was given as tokens.
        text_only: whether nothing else (images, sound) becomes tokens too.
    """

    size: int
    overhead: int = 0
    tokens: int | None = None
    text_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """A prompt's length in tokens: the best estimate and the range it is in. Exact when all are the same."""

    tokens: int
    low: int
    high: int

    @classmethod
    def exactly(cls, tokens: int) -> Length:
        """A length that is known."""
        return cls(tokens=tokens, low=tokens, high=tokens)

    @property
    def exact(self) -> bool:
        """Whether it is known and not estimated."""
        return self.low == self.high


def prompt_text(body: dict[str, Any]) -> PromptText:
    """Find out what of a chat's or a completion's body becomes the prompt; what has no sense counts as nothing."""
    prompt = body.get("prompt")
    if prompt is not None:
        return _of_prompt(prompt)
    messages = body.get("messages")
    messages = [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    parts = [part for message in messages for part in _parts(message.get("content"))]
    size = sum(_size(part) for part in parts if isinstance(part, str))
    for extra in (body.get("tools"), *(message.get("tool_calls") for message in messages)):
        size += _size_as_json(extra) if extra else 0
    return PromptText(
        size=size,
        overhead=_MESSAGE_TOKENS * len(messages),
        text_only=all(isinstance(part, str) for part in parts),
    )


def _of_prompt(prompt: object) -> PromptText:
    batch = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    longest = max((len(each) for each in batch if isinstance(each, list)), default=0)
    if longest:
        return PromptText(size=0, tokens=longest)
    return PromptText(size=max((_size(each) for each in batch if isinstance(each, str)), default=0))


def _parts(content: object) -> list[object]:
    """Return the texts of a message's content; what is not text stands for itself."""
    if isinstance(content, list):
        return [part.get("text", part) if isinstance(part, dict) else part for part in content]
    return [] if content is None else [content]


def _size_as_json(value: object) -> int:
    try:
        return _size(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        return 0  # the body is refused for it in a moment, in better words


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


@dataclass(slots=True)
class _Ratio:
    size: float = _TRUST_BYTES
    tokens: float = _TRUST_BYTES / _BYTES_PER_TOKEN
    squares: float = _TRUST_ANSWERS * _MARGIN**2
    weight: float = _TRUST_ANSWERS
    answers: int = 0


class PromptLengths:
    """Bytes per token by model, learnt from the prompt tokens that answers report."""

    def __init__(self) -> None:
        self._ratios: OrderedDict[str, _Ratio] = OrderedDict()

    def estimate(self, model: str, text: PromptText) -> Length:
        """Estimate a prompt's length; the true one is outside the range in about one of a hundred cases."""
        if text.tokens is not None:
            return Length.exactly(text.tokens)
        ratio = self._ratios.get(model) or _Ratio()
        tokens = text.overhead + text.size * ratio.tokens / ratio.size
        margin = _DEVIATIONS * math.sqrt(ratio.squares / ratio.weight)
        return Length(
            tokens=max(1, round(tokens)),
            low=max(1, math.floor(tokens * (1 - margin)) - _SLACK),
            high=math.ceil(tokens * (1 + margin)) + _SLACK,
        )

    def observe(self, model: str, text: PromptText, tokens: int) -> None:
        """Learn from an answer: this text had so many tokens."""
        if text.tokens is not None or not text.text_only or text.size == 0 or tokens <= text.overhead:
            return
        ratio = self._ratios.setdefault(model, _Ratio())
        self._ratios.move_to_end(model)
        while len(self._ratios) > _MODELS:
            self._ratios.popitem(last=False)
        error = (tokens - text.overhead) / (text.size * ratio.tokens / ratio.size) - 1
        fade = 1 - 1 / _MEMORY
        # Long prompts say more of the ratio; of how far an estimate is off, each says as much as any other.
        ratio.size = fade * ratio.size + text.size
        ratio.tokens = fade * ratio.tokens + tokens - text.overhead
        ratio.squares = fade * ratio.squares + error * error
        ratio.weight = fade * ratio.weight + 1
        ratio.answers += 1

    def state(self) -> list[dict[str, Any]]:
        """Return what has been learnt, for people to read."""
        return [
            {
                "model": model,
                "bytes_per_token": round(ratio.size / ratio.tokens, 3),
                "relative_error": round(math.sqrt(ratio.squares / ratio.weight), 4),
                "answers": ratio.answers,
            }
            for model, ratio in sorted(self._ratios.items())
        ]
