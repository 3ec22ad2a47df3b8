"""What a compressor is trained on and judged by, as tokens: windows of text, and what the reader is to say about them.

Every sample of a step follows from the seed and the step's number alone: a training that goes on meets the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.compressor.settings import TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.compressor.settings import TrainSettings


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_MARK: Final = "\ue000"  # of the private use area: no tokeniser's template holds it
_REPEAT: Final = "Repeat the text above, word for word."

_FACTS: Final = (
    ("The access code of the {name} locker is", "What is the access code of the {name} locker?"),
    ("The price tag of the {name} says", "What does the price tag of the {name} say?"),
    ("The serial number engraved on the {name} is", "What is the serial number engraved on the {name}?"),
    ("The number painted on the {name} is", "Which number is painted on the {name}?"),
    ("In the ledger, the {name} is entered under", "Under what is the {name} entered in the ledger?"),
    ("Whoever asks for the {name} has to say", "What has one to say who asks for the {name}?"),
    ("The label of the box with the {name} reads", "What does the label of the box with the {name} read?"),
    ("The museum lists the {name} as", "How does the museum list the {name}?"),
)
_NAMES: Final = _split(
    "violin lantern tractor compass piano bicycle telescope kettle anchor camera ladder mirror drum saddle globe "
    "hammer basket clock statue carpet bottle painting engine whistle barrel helmet curtain typewriter sledge harp "
    "lamp wardrobe"
)
_WORDS: Final = _split(
    "amber birch coral delta ember falcon garnet harbor indigo jasper kestrel lotus marble nickel onyx pepper quartz "
    "raven saffron topaz umber velvet willow yarrow zephyr"
)
HELD_OUT_FACTS: Final = (
    ("The special magic number for {name} is", "What is the special magic number for {name}?"),
    ("The winning ticket number in {name} is", "What is the winning ticket number in {name}?"),
    ("The phone number of the {name} office is", "What is the phone number of the {name} office?"),
)
"""Wordings and names that no training sees."""
HELD_OUT_NAMES: Final = _split("Lisbon Oslo Nairobi Quito Hanoi Dublin Ankara Perth Montreal Krakow Seville")


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
        facts: Sequence[tuple[str, str]] = _FACTS,
        names: Sequence[str] = _NAMES,
        words: Sequence[str] = _WORDS,
    ) -> None:
        """Tokenises a text.

        Args:
            tokenizer: of transformers, with a chat template.
            text: paragraphs.
            window: tokens of a window.
            settings: lengths and seed.
            facts: beginnings of sentences and the questions that they answer.
            names: what facts are about.
            words: what facts end in, or seven digits; empty: always digits.

        Raises:
            ValueError: there is too little text.
        """
        self.tokenizer, self.window, self._settings = tokenizer, window, settings
        self.facts, self.names, self.words = tuple(facts), tuple(names), tuple(words)
        joined = tokenizer("\n\n".join(text), add_special_tokens=False, verbose=False)["input_ids"]
        self.tokens: list[int] = list(joined)
        if len(self.tokens) < 2 * window + settings.target:
            raise ValueError(f"the text has {len(self.tokens)} tokens; allowed: {2 * window + settings.target} or more")
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
        """A window with facts in it, and a question about one; the beginning of the answer is given."""
        count = draw.randint(1, min(self._settings.facts, len(self.names)))
        asked, told = None, []
        for name in draw.sample(self.names, count):
            fact, question = draw.choice(self.facts)
            value = self.value(draw)
            told.append(self.ids(f"{fact.format(name=name)} {value}.\n\n"))
            asked = asked or (fact.format(name=name), question.format(name=name), value)
        assert asked is not None
        window = bury(draw, raw, told)
        stem, question, value = asked
        before, after = self.chat(question)
        return Sample("answer", window, before, (*after, *self.ids(stem)), tuple(self.ids(f" {value}")))

    def value(self, draw: Random) -> str:
        """What a fact ends in."""
        digits = not self.words or draw.random() < 0.5
        return str(draw.randrange(1_000_000, 10_000_000)) if digits else " ".join(draw.sample(self.words, 2))

    def chat(self, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The chat template around a document, as tokens in front of it and behind it, up to the answer."""
        message = [{"role": "user", "content": f"{_MARK}\n\n{question}"}]
        text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        before, _, after = text.partition(_MARK)
        return tuple(self.ids(before)), tuple(self.ids(after))

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
