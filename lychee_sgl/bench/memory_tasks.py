"""Documents of any length with three questions each: one fact, two hops in order, two hops the other way round."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from lychee_sgl.heads.haystack import Haystack, python_haystack

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["single", "two-hop", "two-hop-reversed"]
KINDS: tuple[Kind, ...] = ("single", "two-hop", "two-hop-reversed")

_PLACES = (
    "Lisbon", "Oslo", "Nairobi", "Quito", "Hanoi", "Dublin", "Ankara", "Perth", "Montreal", "Krakow", "Seville",
    "Bergen",
)  # fmt: skip
_PEOPLE = (
    "Anna Berg", "Paul Reyes", "Mira Stone", "John Castle", "Lena Holt", "Omar Vance", "Ruth Adler", "Igor Lind",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question; right is a reply that holds the number.

    Attributes:
        kind: one of `KINDS`.
        question: what is asked.
        answer: the number.
        needed: the facts that it takes, as they stand in the document.
    """

    kind: Kind
    question: str
    answer: str
    needed: tuple[str, ...] = ()

    def is_answered_by(self, reply: str) -> bool:
        """Whether a reply holds the number, however it groups the digits."""
        return self.answer in reply.replace(",", "").replace(" ", "").replace("-", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text and what is asked of it, in the order of asking."""

    name: str
    tokens: int
    text: str
    asked: tuple[Asked, ...]


def haystack() -> Haystack:
    """All of Python's own documentation: nothing is learnt here, so both of its halves can be read."""
    one, other = python_haystack("calibration"), python_haystack("evaluation")
    return Haystack(one.paragraphs + other.paragraphs, one.origin)


def documents(
    lengths: Sequence[int], count: int, *, seed: int, text: Haystack, chars_per_token: float
) -> tuple[Document, ...]:
    """Makes the documents; the same for the same arguments.

    Which question comes first turns with the document. A text that is too short for a length is repeated: the facts
    stand in it once all the same.

    Args:
        lengths: in tokens, about.
        count: of each length.
        seed: everything drawn follows from it.
        text: what the facts are hidden in.
        chars_per_token: of the model's tokeniser on it.
    """
    return tuple(
        _document(tokens, number, seed, text, chars_per_token) for tokens in lengths for number in range(count)
    )


def _document(tokens: int, number: int, seed: int, text: Haystack, chars_per_token: float) -> Document:
    draw = Random(f"lychee-sgl memory {seed} {tokens} {number}")
    places, people = draw.sample(_PLACES, 3), draw.sample(_PEOPLE, 2)
    numbers = [str(value) for value in draw.sample(range(1_000_000, 10_000_000), 3)]
    facts = [(f"The special magic number for {places[0]} is {numbers[0]}.", draw.uniform(0.02, 0.98))]
    question = f"What is the special magic number for {places[0]}?"
    asked = [Asked(kind="single", question=question, answer=numbers[0], needed=(facts[0][0],))]
    for kind, place, person, value in zip(KINDS[1:], places[1:], people, numbers[1:], strict=True):
        early, late = draw.uniform(0.02, 0.45), draw.uniform(0.55, 0.98)
        first, second = (early, late) if kind == "two-hop" else (late, early)
        hops = (f"The key of the {place} office is kept by {person}.", f"The phone number of {person} is {value}.")
        facts += zip(hops, (first, second), strict=True)
        question = f"What is the phone number of the person who keeps the key of the {place} office?"
        asked.append(Asked(kind=kind, question=question, answer=value, needed=hops))
    size = sum(len(block) + 2 for block in text.paragraphs)
    copies = 1 + int(tokens * chars_per_token) // size
    longer = dataclasses.replace(text, paragraphs=text.paragraphs * copies)
    facts.sort(key=lambda fact: fact[1])
    turn = number % len(asked)
    return Document(
        name=f"{tokens}-{number}",
        tokens=tokens,
        text=longer.bury(draw, [fact for fact, _ in facts], [depth for _, depth in facts], tokens, chars_per_token),
        asked=(*asked[turn:], *asked[:turn]),
    )
