"""The working memory: passages of the document, word for word, as many as fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+|\n|(?<=[\u3002\uff01\uff1f])")
_DECORATION: Final = re.compile(
    r"^[\s\"'\u201c\u201d\u2018\u2019*>•\d.)(-]*(?=[^\W\d])|[\s\"'\u201c\u201d\u2018\u2019*]+$"
)
_NUMBER: Final = re.compile(r"\d+")
_CUT_NUMBER: Final = re.compile(r"\d+$")
_SHORTEST: Final = 12
_SHARE: Final = 0.8
"""Of a quote's characters that must stand in the block in one piece: a quote with another number in it is none."""
_LONGEST_NOTE: Final = 600
_MOST_PLACES: Final = 1000
"""Where a quote's middle is looked at: in a line of thousands of equal signs it stands everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A passage.

    Attributes:
        block: index of the block it stands in.
        start: of its text in the block's.
        text: as in the document, white space as single blanks.
        score: how much more likely it makes the question; None where that was not asked.
        tokens: of its line.
    """

    block: int
    start: int
    text: str
    score: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Notes in the order of the document."""

    notes: tuple[Note, ...] = ()

    @property
    def text(self) -> str:
        """One line for each note."""
        return "\n".join(note.text for note in self.notes)

    @property
    def tokens(self) -> int:
        """Of all lines."""
        return sum(note.tokens for note in self.notes)

    def take(self, notes: tuple[Note, ...], room: int) -> Memory:
        """Adds notes, then drops those with the lowest score, of equal ones the later, until they fit.

        Args:
            notes: further ones; a text that is there already is not taken twice, and one that does not fit even
                alone is not taken: it would drive out all others before it goes itself.
            room: most tokens.
        """
        held = list(self.notes)
        for note in notes:
            if note.tokens <= room and all(note.text != other.text for other in held):
                held.append(note)
        held.sort(key=lambda note: (note.block, note.start))
        while sum(note.tokens for note in held) > room:
            held.remove(min(reversed(held), key=lambda note: note.score))
        return Memory(tuple(held))


def passages(reply: str, block: str) -> list[tuple[int, int]]:
    """Finds what a reply quotes.

    Args:
        reply: what the model wrote; each line, or each sentence of it, may be a quote.
        block: the text it may quote from.

    Returns:
        Start and end of whole sentences of the block, rising, without overlaps. What does not stand there gives none.
    """
    found: list[tuple[int, int]] = []
    for line in reply.splitlines():
        quoted = _DECORATION.sub("", line)
        whole = _place(quoted, block)
        places = [whole] if whole else [_place(part, block) for part in _SENTENCE_END.split(quoted)]
        found.extend(_whole_sentences(block, *place) for place in places if place is not None)
    merged: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def begins_a_quote(reply: str, block: str) -> bool:
    """Whether a reply that goes on may quote a block: it does, behind a colon perhaps, or is too short to say."""
    # the last number may go on; as it is, it need not stand in the block
    said = _CUT_NUMBER.sub("", reply)
    behind = said.rpartition(":")[2]
    lines = [line for line in behind.splitlines() if line.strip()]
    if not lines or len(lines[-1].strip()) < _SHORTEST:
        return True
    return bool(passages(said, block) or passages(behind, block))


def sentences(block: str) -> list[tuple[int, int]]:
    """Start and end of a block's sentences, without the shortest; longer ones than a note may be are cut."""
    ends = [*(cut.span() for cut in _SENTENCE_END.finditer(block)), (len(block), len(block))]
    starts = [0, *(after for _, after in ends)]
    found = [(start, min(end, start + _LONGEST_NOTE)) for start, (end, _) in zip(starts, ends, strict=False)]
    return [(start, end) for start, end in found if end - start >= _SHORTEST]


def _place(quoted: str, block: str) -> tuple[int, int] | None:
    """Where most of a quote stands in a block, white space and case aside; its numbers must all stand there."""
    words = quoted.split()
    if len(" ".join(words)) < _SHORTEST:
        return None
    exact = re.search(r"\s+".join(map(re.escape, words)), block, re.IGNORECASE)
    if exact:
        return exact.span()
    run = _longest_run(quoted, block)
    if run is None:
        return None
    start, end = _whole_sentences(block, *run)
    if set(_NUMBER.findall(quoted)) - set(_NUMBER.findall(block[start:end])):
        return None
    return run


def _longest_run(quoted: str, block: str) -> tuple[int, int] | None:
    """The longest piece of a quote that stands in a block, if it is long enough.

    A piece of four fifths of the quote has the quote's middle in it: only places where that stands are looked at, and
    of those the first thousand.
    """
    first = len(quoted) - int(_SHARE * len(quoted))
    middle = quoted[first : len(quoted) - first]
    best: tuple[int, int] | None = None
    at = block.find(middle) if middle else -1
    for _ in range(_MOST_PLACES):
        if at < 0:
            break
        start, end = at, at + len(middle)
        while start > 0 and at - start < first and block[start - 1] == quoted[first - (at - start) - 1]:
            start -= 1
        while end < len(block) and end - at + first < len(quoted) and block[end] == quoted[end - at + first]:
            end += 1
        if best is None or end - start > best[1] - best[0]:
            best = start, end
        at = block.find(middle, at + 1)
    return best if best is not None and best[1] - best[0] >= max(_SHORTEST, _SHARE * len(quoted)) else None


def _whole_sentences(block: str, start: int, end: int) -> tuple[int, int]:
    """Widens a range to the ends of its sentences, within the longest note."""
    first, last = max(0, end - _LONGEST_NOTE), min(len(block), start + _LONGEST_NOTE)
    begins = [cut.end() for cut in _SENTENCE_END.finditer(block, first, start)]
    stop = _SENTENCE_END.search(block, max(start, end - 1), last)
    return min(start, begins[-1] if begins else first), max(end, stop.start() if stop else last)
