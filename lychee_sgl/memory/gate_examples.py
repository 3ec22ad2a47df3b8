"""Generated blocks for a gate to learn from and to be judged on: real text, with and without the fact asked for.

Both halves share no paragraph of text, no name, no wording. Of the half that judges, the facts of `lychee-sgl bench
memory` are a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal

from lychee_sgl.heads.haystack import python_haystack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.heads.haystack import Haystack

Split = Literal["train", "held-out"]
SPLITS: Final[tuple[Split, ...]] = ("train", "held-out")

NEEDED: Final = ("fact", "fact named otherwise", "first hop", "second hop")
NOT_NEEDED: Final = (
    "fact of another name", "another name, said otherwise", "no such fact", "first hop of another name",
    "second hop of another name", "no hop", "known already",
)  # fmt: skip
EARLY: Final = "second hop before the first"
"""Nobody can know that it is needed: neither learnt nor judged, only told how often it is accepted."""

_SHORTEST: Final = 500
_LONGEST: Final = 2500
_BARE: Final = 0.25
"""Share of blocks without any fact: most blocks of a document are of that kind."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A wording: a sentence, and questions for its value; the second one shares few words with it."""

    sentence: str
    questions: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Hops:
    """A wording of two sentences and a question that needs both."""

    first: str
    second: str
    question: str


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What one half speaks of: `{x}` is a name of `names`, `{p}` one of `people`, `{n}` a number.

    `names` have what else their bearer is called, which no block says: who asks so needs a reader that knows it.
    """

    facts: tuple[Fact, ...]
    hops: tuple[Hops, ...]
    names: dict[str, str]
    people: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question to a block.

    Attributes:
        kind: one of `NEEDED`, `NOT_NEEDED`, or `EARLY`.
        question: what is asked.
        notes: the working memory.
    """

    kind: str
    question: str
    notes: str

    @property
    def needed(self) -> bool | None:
        """Whether the block holds what the question needs now; None where nobody could know."""
        return None if self.kind == EARLY else self.kind in NEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A block and what is asked of it."""

    name: str
    split: Split
    text: str
    questions: tuple[Question, ...]


WORLDS: Final[dict[Split, World]] = {
    "train": World(
        facts=(
            Fact(
                "The access code of the {x} locker is {n}.",
                ("What is the access code of the {x} locker?", "Which digits open the place where the {x} is kept?"),
            ),
            Fact(
                "In the ledger, the {x} is entered under {n}.",
                ("Under which number is the {x} entered in the ledger?", "Where in the books does one find the {x}?"),
            ),
            Fact(
                "At the auction the {x} was sold for {n} crowns.",
                ("For how many crowns was the {x} sold at the auction?", "What did somebody pay to own the {x}?"),
            ),
            Fact(
                "Whoever asks for the {x} has to show form {n}.",
                ("Which form has to be shown to get the {x}?", "What paper does one need for the {x}?"),
            ),
            Fact(
                "{p} joined the expedition as member {n}.",
                ("As which member did {p} join the expedition?", "What was the number of {p} among the travellers?"),
            ),
            Fact(
                "The badge of {p} carries the number {n}.",
                ("Which number does the badge of {p} carry?", "How does a guard recognise {p}?"),
            ),
        ),
        hops=(
            Hops(
                "The {x} belongs to {p}.",
                "{p} can be reached at extension {n}.",
                "At which extension can the owner of the {x} be reached?",
            ),
            Hops(
                "The {x} was repaired by {p}.",
                "The workshop of {p} is room {n}.",
                "In which room is the workshop of the one who repaired the {x}?",
            ),
            Hops(
                "{p} wrote the report on the {x}.",
                "Payments to {p} go to account {n}.",
                "To which account do payments to the author of the report on the {x} go?",
            ),
        ),
        names={
            "violin": "fiddle", "lantern": "portable light", "tractor": "farm vehicle", "compass": "direction finder",
            "piano": "keyboard instrument", "bicycle": "two-wheeler", "telescope": "stargazing tube",
            "kettle": "water boiler", "anchor": "mooring iron", "ladder": "climbing frame with rungs",
            "Rialto mirror": "Venetian looking glass", "Calder tambourine": "percussion piece",
            "Moravian saddle": "Czech riding seat", "Verona globe": "Italian model of the earth",
            "Tudor clock": "English timepiece", "Hansa statue": "northern sculpture",
        },
        people=(
            "Clara Weiss", "Tom Okafor", "Nadia Petrov", "Hugo Lambert", "Ines Duarte", "Karl Nyman", "Yuki Mori",
            "Samir Haddad", "Greta Olsen", "Liam Byrne", "Petra Novak", "Diego Rojas",
        ),
    ),
    "held-out": World(
        facts=(
            Fact(
                "The special magic number for {x} is {n}.",
                ("What is the special magic number for {x}?", "Which lucky figure does {x} have?"),
            ),
            Fact(
                "The ticket that won the lottery in {x} was {n}.",
                ("Which ticket won the lottery in {x}?", "By what slip of paper did somebody in {x} get rich?"),
            ),
            Fact(
                "{p} lives at {n} Harbour Street.",
                ("At which number of Harbour Street does {p} live?", "What is the address of {p}?"),
            ),
            Fact(
                "The blood donor card of {p} has the serial number {n}.",
                ("Which serial number does the blood donor card of {p} have?", "How is {p} filed at the hospital?"),
            ),
        ),
        hops=(
            Hops(
                "The key of the {x} office is kept by {p}.",
                "The phone number of {p} is {n}.",
                "What is the phone number of the person who keeps the key of the {x} office?",
            ),
            Hops(
                "The lighthouse of {x} is looked after by {p}.",
                "{p} took the oath under register entry {n}.",
                "Under which register entry did the keeper of the lighthouse of {x} take the oath?",
            ),
        ),
        names={
            "Lisbon": "the capital of Portugal", "Oslo": "the capital of Norway", "Nairobi": "the capital of Kenya",
            "Quito": "the capital of Ecuador", "Hanoi": "the capital of Vietnam", "Dublin": "the capital of Ireland",
            "Ankara": "the capital of Turkey", "Perth": "the largest city of Western Australia",
            "Montreal": "the largest city of Quebec", "Krakow": "the old royal city of Poland",
            "Seville": "the largest city of Andalusia", "Bergen": "the second city of Norway",
        },
        people=(
            "Anna Berg", "Paul Reyes", "Mira Stone", "John Castle", "Lena Holt", "Omar Vance", "Ruth Adler",
            "Igor Lind", "Fay Quinn", "Noel Abbot",
        ),
    ),
}  # fmt: skip


VERSION: Final = 1
"""Raised when blocks are made otherwise: features of others are not gone on with."""


def text_of(split: Split) -> Haystack:
    """What the blocks of a half are made of: one half of Python's documentation each."""
    return python_haystack("calibration" if split == "train" else "evaluation")


def sample(split: Split, number: int, seed: int, text: Haystack, chars_per_token: float) -> Sample:
    """One block; the same for the same arguments.

    Args:
        split: which half.
        number: of the block.
        seed: everything drawn follows from it.
        text: of this half.
        chars_per_token: of the model's tokeniser on it.
    """
    draw = Random(f"lychee-sgl memory gate {seed} {split} {number}")
    return _Maker(draw, WORLDS[split], text).sample(f"{split}-{number}", split, chars_per_token)


class _Maker:
    """Draws one block and its questions."""

    def __init__(self, draw: Random, world: World, text: Haystack) -> None:
        self._draw, self._text = draw, text
        self._world = world
        self._names, self._people = draw.sample([*world.names], 6), draw.sample(world.people, 6)
        self._fact, self._absent = draw.sample(world.facts, 2)
        self._hops, self._other_hops = draw.sample(world.hops, 2)

    def sample(self, name: str, split: Split, chars_per_token: float) -> Sample:
        planted, questions = self._bare() if self._draw.random() < _BARE else self._furnished()
        self._draw.shuffle(planted)
        tokens = _SHORTEST * (_LONGEST / _SHORTEST) ** self._draw.random()  # as many short ones as long ones
        depths = sorted(self._draw.random() for _ in planted)
        text = self._text.bury(self._draw, planted, depths, tokens, chars_per_token)
        return Sample(name=name, split=split, text=text, questions=tuple(questions))

    def _furnished(self) -> tuple[list[str], list[Question]]:
        """A fact, a first hop, the second hop of another question; half of the time the fact's wording once more."""
        x, p, hops, others = self._names, self._people, self._hops, self._other_hops
        planted = [
            self._say(self._fact.sentence, x[0], p[0]),
            self._say(hops.first, x[3], p[3]),
            self._say(others.second, x[5], p[5]),
        ]
        if self._draw.random() < 0.5:
            planted.append(self._say(self._fact.sentence, x[2], p[2]))
        stranger = self._say(others.first, x[4], p[4])
        return planted, [
            *self._said_otherwise(),
            self._asked("fact", self._fact, x[0], p[0], self._clutter(), wording=0),
            self._asked("fact", self._fact, x[0], p[0], self._clutter(), wording=1),
            self._asked("fact of another name", self._fact, x[1], p[1], self._clutter(), wording=0),
            self._asked("fact of another name", self._fact, x[1], p[1], self._clutter(), wording=1),
            self._asked("no such fact", self._absent, x[1], p[1], self._clutter()),
            self._asked("first hop", hops, x[3], p[3], self._clutter()),
            self._asked("first hop of another name", hops, x[4], p[4], self._clutter()),
            self._asked("second hop", others, x[5], p[5], self._clutter(self._say(others.first, x[5], p[5]))),
            self._asked("second hop of another name", others, x[4], p[4], self._clutter(stranger)),
            self._asked("no hop", hops, x[1], p[1], self._clutter(self._say(hops.first, x[1], p[1]))),
            self._asked(EARLY, others, x[5], p[5], ""),
        ]

    def _said_otherwise(self) -> list[Question]:
        """Questions for the fact and for another one, which name neither as the block does."""
        if "{x}" not in self._fact.sentence:
            return []
        called = [self._world.names[name] for name in self._names[:2]]
        return [
            self._asked("fact named otherwise", self._fact, called[0], "", self._clutter(), wording=0),
            self._asked("another name, said otherwise", self._fact, called[1], "", self._clutter(), wording=0),
        ]

    def _bare(self) -> tuple[list[str], list[Question]]:
        """Text alone."""
        x, p = self._names, self._people
        known = self._say(self._fact.sentence, x[0], p[0])
        first = self._say(self._hops.first, x[1], p[1])
        return [], [
            self._asked("no such fact", self._absent, x[2], p[2], self._clutter()),
            self._asked("known already", self._fact, x[0], p[0], self._clutter(known)),
            self._asked("no hop", self._hops, x[1], p[1], self._clutter(first)),
            self._asked("no hop", self._other_hops, x[3], p[3], self._clutter()),
        ]

    def _say(self, sentence: str, x: str, p: str) -> str:
        return sentence.format(x=x, p=p, n=self._draw.randrange(1_000_000, 10_000_000))

    def _asked(self, kind: str, what: Fact | Hops, x: str, p: str, notes: str, wording: int | None = None) -> Question:
        if isinstance(what, Hops):
            text = what.question
        else:
            text = self._draw.choice(what.questions) if wording is None else what.questions[wording]
        return Question(kind=kind, question=text.format(x=x, p=p), notes=notes)

    def _clutter(self, *notes: str) -> str:
        """Notes, often with one that helps nobody, as a small model takes them."""
        lines = list(notes)
        if self._draw.random() < 0.4:
            lines.insert(self._draw.randrange(len(lines) + 1), self._draw.choice(self._text.paragraphs)[:200])
        return "\n".join(lines)


def to_row(sample: Sample, values: Sequence[dict[str, float]]) -> dict[str, Any]:
    """A block's line in the file of features."""
    asked = [
        {"kind": question.kind, "needed": question.needed, "features": {k: round(v, 5) for k, v in found.items()}}
        for question, found in zip(sample.questions, values, strict=True)
    ]
    return {"block": sample.name, "split": sample.split, "characters": len(sample.text), "asked": asked}
