"""What a compressor is trained on and judged by, as tokens: windows of text, and what the reader is to say about them.

Every sample of a step follows from the seed and the step's number alone: a training that goes on meets the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.compressor.facts import facts_of
from lychee_sgl.compressor.settings import TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.compressor.facts import Facts
    from lychee_sgl.compressor.settings import TrainSettings


_MARK: Final = "\ue000"  # of the private use area: no tokeniser's template holds it, nor the next
_ASKED: Final = "\ue001"
_REPEAT: Final = "Repeat the text above, word for word."
_ONWARD: Final = (
    'How does the text go on after "{cue}"?',
    'Which words follow "{cue}"?',
    'The text says "{cue}". What comes next?',
)
_QUOTED: Final = 0.3
"""Share of the questions that are about the text itself, where facts are broad."""
_SHORT: Final = 8  # tokens that a quotation is asked for, at most
_TRIES: Final = 50


@dataclass(frozen=True, slots=True)
class Sample:
    """A window and what is to be said about it.

    Attributes:
        task: one of `TASKS`.
        window: tokens that are compressed.
        before: tokens in front of the blocks.
        after: tokens behind them.
        target: tokens that the reader is to say then.
    """

    task: str
    window: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]


class Samples:
    """Samples of a text for a tokeniser."""

    def __init__(
        self,
        tokenizer: Any,
        text: Sequence[str],
        *,
        window: int,
        settings: TrainSettings,
        facts: Facts | None = None,
    ) -> None:
        """Tokenises a text.

        Args:
            tokenizer: of transformers, with a chat template.
            text: paragraphs.
            window: tokens of a window.
            settings: lengths and seed.
            facts: what is told and asked; None: what is trained on, with words of the text.

        Raises:
            ValueError: there is too little text.
        """
        self.tokenizer, self.window, self._settings = tokenizer, window, settings
        self.facts = facts_of(text) if facts is None else facts
        joined = tokenizer("\n\n".join(text), add_special_tokens=False, verbose=False)["input_ids"]
        self.tokens: list[int] = list(joined)
        if len(self.tokens) < 2 * window + settings.target:
            raise ValueError(f"the text has {len(self.tokens)} tokens; allowed: {2 * window + settings.target} or more")
        message = [{"role": "user", "content": f"{_MARK}\n\n{_ASKED}"}]
        rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        before, _, behind = rendered.partition(_MARK)
        self._before = tuple(self.ids(before))
        self._behind = behind.partition(_ASKED)
        self._repeat = self.chat(_REPEAT)

    def batch(self, step: int) -> list[Sample]:
        """A step's samples, a third for each task."""
        draw = Random(f"lychee-sgl compressor {self._settings.seed} {step}")
        return [self.sample(TASKS[number % len(TASKS)], draw) for number in range(self._settings.batch)]

    def sample(self, task: str, draw: Random) -> Sample:
        """One sample of a task."""
        window, target = self.window, self._settings.target
        at = draw.randrange(len(self.tokens) - window - target)
        raw = tuple(self.tokens[at : at + window])
        if task == "reconstruct":
            return Sample(task, raw, *self._repeat, raw)
        if task == "continue":
            begin = self._repeat[0][:1]  # what texts begin with for this model
            return Sample(task, raw, begin, (), tuple(self.tokens[at + window : at + window + target]))
        return self._question(raw, draw)

    def _question(self, raw: tuple[int, ...], draw: Random) -> Sample:
        """A window and a question about it; the beginning of the answer is given."""
        if self.facts.broad and draw.random() < _QUOTED and (quoted := self._quote(raw, draw)) is not None:
            return quoted
        for _ in range(_TRIES):  # in a short window not every fact has room
            told, question, stem, value = self._told(draw)
            if len(told[0]) <= len(raw):
                break
        before, after = self.chat(question)
        # what is trained comes to an end, as an answer has to; what is judged is the value alone
        end = "." if self.facts.broad else ""
        target = tuple(self.ids(f" {value}{end}"))
        return Sample("answer", bury(draw, raw, told), before, (*after, *self.ids(stem)), target)

    def _told(self, draw: Random) -> tuple[list[list[int]], str, str, str]:
        """Facts as tokens; question, stem and value of the first."""
        facts, told, asked = self.facts, [], []
        for name in facts.some(draw, draw.randint(1, min(self._settings.facts, len(facts.names)))):
            fact, question = draw.choice(facts.wordings)
            value = facts.value(draw)
            told.append(self.ids(f"{fact.format(name=name)} {value}.\n\n"))
            asked.append((question.format(name=name), fact.format(name=name), value))
        return told, *asked[0]

    def _quote(self, raw: tuple[int, ...], draw: Random) -> Sample | None:
        """The first words of a sentence of the window, asked how they go on; None: there is no such sentence."""
        words = self.tokenizer.decode(raw).split()
        cue, onward = draw.randint(4, 7), draw.randint(1, 3)
        starts = [at for at in range(1, len(words) - cue - onward) if words[at - 1].endswith((".", "?", ":"))]
        if not starts:
            return None
        at = draw.choice(starts)
        stem = " ".join(words[at : at + cue])
        if " ".join(words).count(stem) != 1:
            return None
        before, after = self.chat(draw.choice(_ONWARD).format(cue=stem))
        target = self.ids(" " + " ".join(words[at + cue : at + cue + onward]))
        return Sample("answer", raw, before, (*after, *self.ids(stem)), tuple(target[:_SHORT]))

    def chat(self, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The chat template around a document, as tokens in front of it and behind it, up to the answer."""
        front, _, end = self._behind
        return self._before, tuple(self.ids(f"{front}{question}{end}"))

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def bury(draw: Random, raw: Sequence[int], told: Sequence[list[int]]) -> tuple[int, ...]:
    """A window as long as it was, with facts at places that are drawn; none is broken.

    Args:
        draw: of places and order.
        raw: tokens of the window; the last ones make room.
        told: facts as tokens; the first stands in it for certain, of the others those that fit.

    Raises:
        ValueError: the first does not fit.
    """
    window, told = len(raw), list(told)
    if told and len(told[0]) > window:
        raise ValueError(f"window is {window}; allowed: {len(told[0])} or more, for a fact to stand in it")
    while sum(map(len, told)) > window:
        told.pop()
    filler = list(raw[: window - sum(map(len, told))])
    draw.shuffle(told)
    pieces: list[int] = []
    at = 0
    for place, fact in zip(sorted(draw.randrange(len(filler) + 1) for _ in told), told, strict=True):
        pieces += [*filler[at:place], *fact]
        at = place
    return (*pieces, *filler[at:])
