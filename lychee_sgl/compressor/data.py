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


_MARK: Final = "\ue000"  # of the private use area: no tokeniser's template holds it, nor the next ones
_ASKED: Final = "\ue001"
_TOLD: Final = "\ue002"
_THEN: Final = "\ue003"
_REPEAT: Final = "Repeat the text above, word for word."
_ONWARD: Final = (
    'How does the text go on after "{cue}"?',
    'Which words follow "{cue}"?',
    'The text says "{cue}". What comes next?',
)
_QUOTED: Final = 0.3
"""Share of the questions that are about the text itself, where facts are broad."""
_SHORT: Final = 8  # tokens that a quotation is asked for, at most
_QUOTES: Final = 3  # of a text, at most
_TRIES: Final = 50


@dataclass(frozen=True, slots=True)
class Sample:
    """A window and what is to be said about it.

    Attributes:
        task: one of `TASKS`.
        window: tokens that are compressed, a window or several.
        before: tokens in front of the blocks.
        after: tokens behind them.
        target: tokens that stand there then.
        scored: places in `target` of those that the reader is to say; the others are given. None: all of them.
    """

    task: str
    window: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]
    scored: tuple[int, ...] | None = None

    @property
    def places(self) -> Sequence[int]:
        """Places in `target` of what the reader is to say."""
        return range(len(self.target)) if self.scored is None else self.scored


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a text.

    Attributes:
        question: as it is put.
        stem: how the answer begins; it is given.
        answer: tokens of how it goes on.
    """

    question: str
    stem: str
    answer: tuple[int, ...]


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
        turns = [("user", f"{_MARK}\n\n{_ASKED}"), ("assistant", _TOLD), ("user", _THEN)]
        messages = [{"role": role, "content": content} for role, content in turns]
        rendered = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        before, _, behind = rendered.partition(_MARK)
        self._before = tuple(self.ids(before))
        self._behind = behind.partition(_ASKED)
        again = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        self._between = again.partition(_TOLD)[2].partition(_THEN)[0]
        self._repeat = self.chat(_REPEAT)

    def batch(self, step: int) -> list[Sample]:
        """A step's samples, a third for each task."""
        draw = Random(f"lychee-sgl compressor {self._settings.seed} {step}")
        return [self.sample(TASKS[number % len(TASKS)], draw) for number in range(self._settings.batch)]

    def sample(self, task: str, draw: Random) -> Sample:
        """One sample of a task."""
        target, count = self._settings.target, self._count(draw) if task == "answer" else 1
        window = count * self.window
        at = draw.randrange(len(self.tokens) - window - target)
        raw = tuple(self.tokens[at : at + window])
        if task == "reconstruct":
            return Sample(task, raw, *self._repeat, raw)
        if task == "continue":
            begin = self._repeat[0][:1]  # what texts begin with for this model
            return Sample(task, raw, begin, (), tuple(self.tokens[at + window : at + window + target]))
        return self._question(raw, draw)

    def _count(self, draw: Random) -> int:
        """Windows of a text that is asked about: one, or twice as many, up to as many as there may be."""
        if not self.facts.broad:
            return 1
        room = (len(self.tokens) - self._settings.target - 1) // self.window
        most = min(self._settings.windows, room)
        return 1 << draw.randrange(most.bit_length())

    def _question(self, raw: tuple[int, ...], draw: Random) -> Sample:
        """A text and what is asked about it: all its facts, or quotations; else the one that is judged by."""
        if self.facts.broad and draw.random() < _QUOTED and (quotes := self._quotes(raw, draw)):
            return self._talk(raw, quotes)
        for _ in range(_TRIES):  # in a short window not every fact has room
            told, asked = self._told(draw)
            if len(told[0]) <= len(raw):
                break
        while sum(map(len, told)) > len(raw) and len(told) > 1:
            told.pop()
        some = asked[: len(told)] if self.facts.broad else asked[:1]
        return self._talk(bury(draw, raw, told), some)

    def _talk(self, window: tuple[int, ...], asked: Sequence[Asked]) -> Sample:
        """One question after the other about a text, in one conversation; the beginnings of the answers are given."""
        first, *others = asked
        before, after = self.chat(first.question)
        said, scored = [*first.answer], [*range(len(first.answer))]
        for one in others:
            said += [*self.ids(f"{self._between}{one.question}{self._behind[2]}"), *self.ids(one.stem)]
            scored += range(len(said), len(said) + len(one.answer))
            said += one.answer
        return Sample("answer", window, before, (*after, *self.ids(first.stem)), tuple(said), tuple(scored))

    def _told(self, draw: Random) -> tuple[list[list[int]], list[Asked]]:
        """Facts as tokens, and what is asked about each."""
        facts, told, asked = self.facts, [], []
        # what is trained comes to an end, as an answer has to; what is judged is the value alone
        end = "." if facts.broad else ""
        for name in facts.some(draw, draw.randint(1, min(self._settings.facts, len(facts.names)))):
            fact, question = draw.choice(facts.wordings)
            stem, value = fact.format(name=name), facts.value(draw)
            told.append(self.ids(f"{stem} {value}.\n\n"))
            asked.append(Asked(question.format(name=name), stem, tuple(self.ids(f" {value}{end}"))))
        return told, asked

    def _quotes(self, raw: tuple[int, ...], draw: Random) -> list[Asked]:
        """First words of sentences of the text, asked how they go on; some texts have none."""
        words = self.tokenizer.decode(raw).split()
        text, quotes = " ".join(words), []
        longest = 7 + 3  # words of a beginning and of what follows
        starts = [at for at in range(1, len(words) - longest) if words[at - 1].endswith((".", "?", ":"))]
        for at in draw.sample(starts, min(_QUOTES, len(starts))):
            cue, onward = draw.randint(4, 7), draw.randint(1, 3)
            stem = " ".join(words[at : at + cue])
            if text.count(stem) != 1:
                continue
            answer = self.ids(" " + " ".join(words[at + cue : at + cue + onward]))
            quotes.append(Asked(draw.choice(_ONWARD).format(cue=stem), stem, tuple(answer[:_SHORT])))
        return quotes

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
