"""What is told in a window and asked about: wordings, names and values. Standard library only.

What is trained on is broad, so that a wording or a kind of value cannot be learned by heart: names and values come from
the words of the text itself. What is judged by shares no wording and no name with it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase, digits
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

WORDINGS: Final = (
    ("The number painted on the {name} is", "Which number is painted on the {name}?"),
    ("The price tag of the {name} says", "What does the price tag of the {name} say?"),
    ("The {name} weighs", "How much does the {name} weigh?"),
    ("In the ledger, the {name} stands under", "Under what does the {name} stand in the ledger?"),
    ("Whoever asks for the {name} has to say", "What has one to say who asks for the {name}?"),
    ("The label on the {name} reads", "What does the label on the {name} read?"),
    ("The museum lists the {name} as", "How does the museum list the {name}?"),
    ("The {name} is opened with", "With what is the {name} opened?"),
    ("Inside the {name} one finds", "What does one find inside the {name}?"),
    ("The old name of the {name} was", "Tell me the old name of the {name}."),
    ("Next to the {name} stands", "What stands next to the {name}?"),
    ("The {name} was sold for", "For how much was the {name} sold?"),
    ("The key to the {name} hangs at", "Where does the key to the {name} hang?"),
    ("The serial of the {name} starts with", "Give the start of the serial of the {name}."),
    ("The crew calls the {name}", "What does the crew call the {name}?"),
    ("The length of the {name} comes to", "To what does the length of the {name} come?"),
    ("Account {name} belongs to", "Whom does account {name} belong to?"),
    ("The password of {name} was changed to", "To what was the password of {name} changed?"),
    ("{name} lives at house", "At which house does {name} live?"),
    ("{name} answers only to", "To what does {name} answer?"),
    ("The file {name} has the checksum", "Which checksum does the file {name} have?"),
    ("{name} was born under the sign", "Under which sign was {name} born?"),
    ("The train to {name} leaves from track", "From which track does the train to {name} leave?"),
    ("On the map, {name} is marked", "How is {name} marked on the map?"),
    ("Parcels for {name} carry", "What do parcels for {name} carry?"),
    ("The variable {name} defaults to", "To what does the variable {name} default?"),
    ("{name} voted for", "Name what {name} voted for."),
    ("Version {name} was built from", "From what was version {name} built?"),
    ("The team of {name} scored", "How much did the team of {name} score?"),
    ("{name}'s favourite is", "Say what {name}'s favourite is."),
    ("Room {name}:", "What is noted for room {name}?"),
    ("{name} =", "What value does {name} have?"),
    ("Reply of {name}:", "Quote the reply of {name}."),
    ("Reference ({name}):", "Look up the reference of {name}."),
    ("The recipe for {name} begins with", "How does the recipe for {name} begin?"),
    ("Sensor {name} last reported", "What did sensor {name} last report?"),
)
"""Beginnings of sentences, and the questions that they answer: to train on."""
HELD_OUT_WORDINGS: Final = (
    ("The special magic number for {name} is", "What is the special magic number for {name}?"),
    ("The winning ticket number in {name} is", "What is the winning ticket number in {name}?"),
    ("The phone number of the {name} office is", "What is the phone number of the {name} office?"),
)
"""Wordings and names that no training sees."""
HELD_OUT_NAMES: Final = (
    "Lisbon", "Oslo", "Nairobi", "Quito", "Hanoi", "Dublin", "Ankara", "Perth", "Montreal", "Krakow", "Seville",
)  # fmt: skip

_THINGS: Final = (
    "violin", "lantern", "tractor", "compass", "piano", "bicycle", "telescope", "kettle", "anchor", "camera", "ladder",
    "mirror", "drum", "saddle", "globe", "hammer", "basket", "clock", "statue", "carpet", "bottle", "painting",
    "engine", "whistle", "barrel", "helmet", "curtain", "sledge", "harp", "lamp", "amber", "birch", "coral", "delta",
    "ember", "falcon", "garnet", "harbor", "indigo", "jasper", "kestrel", "lotus", "marble", "nickel", "onyx", "pepper",
    "quartz", "raven", "saffron", "topaz", "umber", "velvet", "willow", "yarrow", "zephyr",
)  # fmt: skip
_WORD: Final = re.compile(r"(?<![^\W\d_])[A-Za-z]{4,10}(?![^\W\d_])")
_OFTEN, _MOST = 5, 6000  # how often a word has to stand in the text, and how many are taken


@dataclass(frozen=True, slots=True)
class Facts:
    """What facts say.

    Attributes:
        wordings: beginnings of sentences, and the questions that they answer.
        names: what they are about.
        broad: names also capitalised and of two words, values of digits, letters or words, and questions about the text
            itself; else names as they are, and seven digits.
    """

    wordings: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    broad: bool = False

    def some(self, draw: Random, count: int) -> list[str]:
        """Names, no two the same.

        Args:
            draw: of them.
            count: at most as many as there are.
        """
        names = draw.sample(self.names, count)
        return [self._varied(draw, name) for name in names] if self.broad else names

    def value(self, draw: Random) -> str:
        """What a fact ends in; no full stop is in it."""
        if not self.broad:
            return str(draw.randrange(1_000_000, 10_000_000))
        kind = draw.random()
        if kind < 0.5:
            count = draw.randint(3, 9)
            return str(draw.randrange(10 ** (count - 1), 10**count))
        if kind < 0.7:
            signs = draw.choice((ascii_uppercase, ascii_lowercase)) + 2 * digits
            parts = ("".join(draw.choices(signs, k=draw.randint(2, 4))) for _ in range(2))
            return draw.choice(("", "-")).join(parts)
        return " ".join(draw.sample(self.names, draw.randint(1, 3)))

    def _varied(self, draw: Random, name: str) -> str:
        """A name, or it and another word; both as they are, or capitalised."""
        words = [name] if draw.random() < 0.5 else [name, draw.choice(self.names)]
        return " ".join(words if draw.random() < 0.5 else map(str.capitalize, words))


def facts_of(text: Sequence[str]) -> Facts:
    """What to train on with a text: its words are names and values.

    Args:
        text: paragraphs.
    """
    held_out = {name.lower() for name in HELD_OUT_NAMES}
    found = Counter(word.lower() for paragraph in text for word in _WORD.findall(paragraph))
    often = sorted((-count, word) for word, count in found.items() if count >= _OFTEN)
    words = dict.fromkeys((*_THINGS, *(word for _, word in often[:_MOST])))
    return Facts(WORDINGS, tuple(word for word in words if word not in held_out), broad=True)


HELD_OUT: Final = Facts(HELD_OUT_WORDINGS, HELD_OUT_NAMES)
"""What a compressor is judged by."""
