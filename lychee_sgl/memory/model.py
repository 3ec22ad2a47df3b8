"""What the loop asks of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ModelFailed(RuntimeError):
    """A call failed for no fault of its own: trying again may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inlay:
    """Input embeddings that a model reads in place of some of a prompt's tokens.

    Attributes:
        at: which token of the prompt the first one stands for.
        count: how many there are.
        vectors: all of them, one behind the other, in the model's own dtype.
        digest: SHA-256 of `vectors`.
    """

    at: int
    count: int
    vectors: bytes
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back of one call.

    Attributes:
        text: what was generated.
        prompt_tokens: of the call.
        completion_tokens: that were generated.
        cached_tokens: of the prompt, whose KV was there already.
        logprobs: of the prompt's tokens from `score_from` on; none without it.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    logprobs: tuple[float, ...] = ()

    @classmethod
    def of_sglang(cls, answer: Mapping[str, Any], scored: int) -> Reply:
        """Reads what SGLang's `/generate` gives, or its tokenizer manager in the same process.

        Args:
            answer: the object with `text` and `meta_info`.
            scored: how many of the prompt's last tokens were to be scored.
        """
        meta = answer["meta_info"]
        entries = meta["input_token_logprobs"][-scored:] if scored else []
        return cls(
            text=answer["text"],
            prompt_tokens=meta["prompt_tokens"],
            completion_tokens=meta["completion_tokens"],
            cached_tokens=meta.get("cached_tokens", 0),
            # the first token of a prompt has none
            logprobs=tuple(float(entry[0]) for entry in entries if entry[0] is not None),
        )


class Model(Protocol):
    """One served model. `encode` and `render` take their time: they are called in a thread."""

    @property
    def window(self) -> int:
        """Most tokens of prompt and answer together."""

    @property
    def identity(self) -> str:
        """Everything about the model, its weights and how it is run that an answer depends on."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Turns texts into tokens, without special ones."""

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Writes a chat as the model's prompt, up to where its answer begins."""

    async def generate(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        score_from: int | None = None,
        stop: str | None = None,
        inlay: Inlay | None = None,
    ) -> Reply:
        """Runs one greedy completion; being cancelled ends it in the engine, too.

        Args:
            tokens: the prompt.
            max_tokens: most to generate, at least 1.
            score_from: first prompt token whose log-probability is wanted.
            stop: text before which the answer ends.
            inlay: what stands in the prompt where its tokens mean nothing.

        Raises:
            ModelFailed: it may work another time.
            ValueError: it cannot.
        """
