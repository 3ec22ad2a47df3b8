"""A model of words that answers as a test tells it: every word, and every run of white space, is a token."""

from __future__ import annotations

import asyncio
import re
from array import array
from collections import Counter
from typing import TYPE_CHECKING

from lychee_sgl.memory.model import ModelFailed, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lychee_sgl.memory.model import Inlay


class ScriptedModel:
    """Quotes lines of the prompt that hold one of the wanted words; or what `reply` says."""

    def __init__(
        self, wanted: Sequence[str] = (), reply: Callable[[str], str] | None = None, window: int = 8192
    ) -> None:
        self.window, self.identity = window, "scripted"
        self.wanted, self._reply = tuple(wanted), reply
        self.words: list[str] = []
        self._ids: dict[str, int] = {}
        self.asked: list[str] = []
        self.failures: Counter[str] = Counter()
        """How often a prompt with this word in it shall still fail."""
        self.tokens = 0
        self.hang: str | None = None
        self.running = 0
        self.most_running = 0
        self.began = asyncio.Event()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._id(word) for word in re.findall(r"\S+|\s+", text)] for text in texts]

    def _id(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self.words)
            self.words.append(word)
        return self._ids[word]

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.words[token] for token in tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "".join(f"<{m['role']}> {m['content']} </{m['role']}> " for m in messages) + "<assistant> "

    async def generate(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        score_from: int | None = None,
        stop: str | None = None,
        inlay: Inlay | None = None,
    ) -> Reply:
        self.tokens += len(tokens)
        sent = len(tokens)
        if inlay is not None:  # what a `Packing` has packed, in place of the placeholders
            packed = [*memoryview(inlay.vectors).cast("I")]
            tokens = [*tokens[: inlay.at], *packed, *tokens[inlay.at + inlay.count :]]
            score_from = None if score_from is None else score_from + len(packed) - inlay.count
        text = self.decode(tokens)
        self.asked.append(text)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.began.set()
        try:
            await asyncio.sleep(0)
            if self.hang is not None and self.hang in text:
                await asyncio.Event().wait()
            for word in self.failures:
                if word in text and self.failures[word] > 0:
                    self.failures[word] -= 1
                    raise ModelFailed(f"no room for {word}")
        finally:
            self.running -= 1
        if score_from is not None:
            # a context with a wanted word makes each token of the question twice as likely as one without
            bonus = 0.7 if any(word in self.decode(tokens[:score_from]) for word in self.wanted) else 0.0
            return Reply(
                text="",
                prompt_tokens=sent,
                completion_tokens=1,
                logprobs=(-2.0 + bonus,) * (len(tokens) - score_from),
            )
        said = self._reply(text) if self._reply else self._quote(text)
        return Reply(text=said, prompt_tokens=sent, completion_tokens=len(said.split()), cached_tokens=1)

    def _quote(self, prompt: str) -> str:
        if "Copy the sentences" not in prompt:
            return "It is known."
        block = prompt.split("What is known so far:")[0].split("Question:")[0]
        lines = [line for line in block.splitlines() if any(word in line for word in self.wanted)]
        return "\n".join(lines) or "none"

    def blocks_asked(self) -> list[str]:
        """The quoting prompts, in order."""
        return [text for text in self.asked if "Copy the sentences" in text]


class Packing:
    """A compressor that loses nothing: an embedding is its tokens, one behind the other."""

    def __init__(self, ratio: int, identity: str = "packing") -> None:
        self.ratio, self.identity = ratio, identity
        self.vector_bytes = 4 * ratio
        self.made: list[tuple[int, ...]] = []
        self.failures = 0
        self.hang = False
        self.ended = 0
        self.began = asyncio.Event()

    async def compress(self, tokens: list[int], ratio: int) -> bytes:
        assert ratio == self.ratio
        assert tokens
        assert len(tokens) % ratio == 0
        self.began.set()
        try:
            await asyncio.sleep(0)
            if self.hang:
                await asyncio.Event().wait()
            if self.failures > 0:
                self.failures -= 1
                raise ModelFailed("no memory left")
        finally:
            self.ended += 1
        self.made.append(tuple(tokens))
        return array("I", tokens).tobytes()
