"""Needle questions over real text: one invented fact in a long document, and the question that asks for it.

Standard library only, and the same for the same arguments on every machine with the same Python: the text around the
needles is the prose of Python's own language reference, which every interpreter carries as `pydoc_data.topics`
(licence: PSF).

There are two kinds, `calibration` and `evaluation`. They share nothing: neither the pages of text nor the wording of
facts and questions nor the names asked for, so a head plan measured on one kind is judged on the other.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["calibration", "evaluation"]
KINDS: tuple[Kind, ...] = ("calibration", "evaluation")

CHARS_PER_TOKEN = 4.5
"""What this prose comes to with a byte-pair vocabulary of some 50,000 entries (4.54 with SmolLM2's)."""

_WORDINGS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "calibration": (
        ("The access code of the {name} locker is {number}.", "What is the access code of the {name} locker?"),
        ("The price tag of the {name} says {number}.", "What does the price tag of the {name} say?"),
        ("The serial number engraved on the {name} is {number}.", "What is the serial number engraved on the {name}?"),
    ),
    "evaluation": (
        ("The special magic number for {name} is {number}.", "What is the special magic number for {name}?"),
        ("The winning ticket number in {name} is {number}.", "What is the winning ticket number in {name}?"),
        ("The phone number of the {name} office is {number}.", "What is the phone number of the {name} office?"),
    ),
}
_NAMES: dict[Kind, tuple[str, ...]] = {
    "calibration": (
        "violin",
        "lantern",
        "tractor",
        "compass",
        "piano",
        "bicycle",
        "telescope",
        "kettle",
        "anchor",
        "camera",
    ),
    "evaluation": (
        "Lisbon",
        "Oslo",
        "Nairobi",
        "Quito",
        "Hanoi",
        "Dublin",
        "Ankara",
        "Perth",
        "Montreal",
        "Krakow",
        "Seville",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedlePrompt:
    """One question over one document.

    Attributes:
        document: the text, needle included.
        needle: the sentence that holds the answer; it stands in `document` once.
        question: what is asked.
        answer: seven digits, in the document once and in the question never.
        depth: share of the document's characters in front of the needle, in [0, 1).
    """

    document: str
    needle: str
    question: str
    answer: str
    depth: float

    @property
    def text(self) -> str:
        """Document and question, as one user message."""
        return f"{self.document}\n\n{self.question}"

    def is_answered_by(self, reply: str) -> bool:
        """Whether a reply holds the number, however it groups the digits."""
        return self.answer in reply.replace(",", "").replace(" ", "")


def needle_prompts(
    count: int,
    *,
    tokens: tuple[int, int],
    seed: int,
    kind: Kind,
    depths: tuple[float, float] = (0.1, 0.85),
    chars_per_token: float = CHARS_PER_TOKEN,
) -> tuple[NeedlePrompt, ...]:
    """Needle questions whose lengths and depths are spread evenly over their ranges, in an order drawn from the seed.

    Args:
        count: how many.
        tokens: shortest and longest document, in tokens; about, because no tokeniser is asked.
        seed: everything that is drawn follows from it.
        kind: which text, wordings and names to use.
        depths: first and last place of a needle, as a share of the document. Each stands between two paragraphs,
            near its place.
        chars_per_token: how a length in tokens becomes one in characters.

    Raises:
        ValueError: a range is empty or out of bounds, or `kind` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}")
    if count < 1:
        raise ValueError(f"count is {count}; allowed: 1 or more")
    if not 16 <= tokens[0] <= tokens[1]:
        raise ValueError(f"tokens is {tokens}; allowed: two rising numbers from 16 on")
    if not 0.0 <= depths[0] <= depths[1] <= 1.0:
        raise ValueError(f"depths is {depths}; allowed: two rising shares between 0 and 1")
    if not chars_per_token > 0:
        raise ValueError(f"chars_per_token is {chars_per_token}; allowed: a number above 0")
    draw = random.Random(f"lychee-sgl needles {kind} {seed}")
    pages = _paragraphs(kind)
    lengths, places = _spread(*tokens, count), _spread(*depths, count)
    draw.shuffle(lengths)
    draw.shuffle(places)
    return tuple(
        _prompt(draw, pages, kind, round(length * chars_per_token), place)
        for length, place in zip(lengths, places, strict=True)
    )


def _spread(low: float, high: float, count: int) -> list[float]:
    """`count` values from low to high in equal steps; the middle for a single one."""
    if count == 1:
        return [(low + high) / 2]
    return [low + (high - low) * i / (count - 1) for i in range(count)]


def _paragraphs(kind: Kind) -> list[str]:
    """The prose of every second page of Python's reference: no tables, grammars or listings."""
    from pydoc_data.topics import topics  # half a megabyte that only this function needs

    owner: dict[str, Kind] = {}  # a paragraph that stands on several pages belongs to the first
    for number, page in enumerate(sorted(topics)):
        for block in topics[page].split("\n\n"):
            owner.setdefault(" ".join(block.split()), KINDS[number % len(KINDS)])
    return [
        block
        for block, owned_by in owner.items()
        if owned_by == kind and len(block) > 120 and block[0].isupper() and block[-1] == "."
    ]


def _prompt(draw: random.Random, pages: Sequence[str], kind: Kind, size: int, place: float) -> NeedlePrompt:
    number = str(draw.randrange(1_000_000, 10_000_000))
    name = draw.choice(_NAMES[kind])
    fact, question = (part.format(name=name, number=number) for part in draw.choice(_WORDINGS[kind]))
    first = draw.randrange(len(pages))
    blocks: list[str] = []
    left = max(1, size - len(fact) - 2)
    while left > 0:  # on from a drawn page, around the end if need be
        block = pages[(first + len(blocks)) % len(pages)]
        blocks.append(block if len(block) <= left else block[:left].rpartition(" ")[0] or block[:left])
        left -= len(block) + 2
    ends = [0]
    for block in blocks:
        ends.append(ends[-1] + len(block) + 2)
    total = ends[-1] + len(fact)
    at = min(range(len(ends)), key=lambda i: abs(ends[i] / total - place))
    document = "\n\n".join((*blocks[:at], fact, *blocks[at:]))
    return NeedlePrompt(
        document=document, needle=fact, question=question, answer=number, depth=document.index(fact) / len(document)
    )
