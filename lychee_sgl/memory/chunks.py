"""Cuts a document into blocks of at most so many tokens, at the best places there are."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Encode = Callable[[Sequence[str]], list[list[int]]]

# Where a text may be cut, the best place first; what matches stays with the text before it.
_ENDS: Final = (
    re.compile(r"\n[^\S\n]*\n\s*"),  # of paragraphs
    re.compile(r"\n|(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])"),  # of lines and sentences
    re.compile(r"\s+"),  # of words
)
_BATCH: Final = 256
_LONGEST_PIECE: Final = 1 << 16
"""Characters that are tokenised in one call: longer pieces are cut before they are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of a document.

    Attributes:
        index: from 0 on.
        text: as it stands in the document.
        tokens: unsigned 32-bit token ids.
        digest: of text and tokens; equal blocks of different documents are one. Tokens alone would not do: what a
            tokeniser does not know is one token, whatever it is.
    """

    index: int
    text: str
    tokens: array[int]
    digest: bytes


def cut(text: str, chunk: int, encode: Encode) -> list[Block]:
    """Cuts a document. Takes about a second a million tokens: not for an event loop.

    Args:
        text: the document.
        chunk: most tokens of a block.
        encode: turns texts into token ids, without special tokens.

    Returns:
        The blocks in order; their texts, joined, are `text`. None for an empty text.

    Raises:
        ValueError: `chunk` is below 1, or a single character has more tokens than that.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; allowed: 1 or more")
    blocks: list[Block] = []
    texts: list[str] = []
    tokens: array[int] = array("I")
    for piece, ids in _pieces(_split(text, 0), 0, chunk, encode):
        if texts and len(tokens) + len(ids) > chunk:
            blocks.append(_block(len(blocks), texts, tokens))
            texts, tokens = [], array("I")
        texts.append(piece)
        tokens.extend(ids)
    if texts:
        blocks.append(_block(len(blocks), texts, tokens))
    return blocks


def _block(index: int, texts: list[str], tokens: array[int]) -> Block:
    text = "".join(texts)
    # surrogates: a text that came as JSON may hold half a pair
    digest = sha256(tokens.tobytes() + b"|" + text.encode(errors="surrogatepass")).digest()
    return Block(index=index, text=text, tokens=tokens, digest=digest)


def _pieces(texts: Iterator[str], level: int, chunk: int, encode: Encode) -> Iterator[tuple[str, list[int]]]:
    """Gives pieces of at most `chunk` tokens, with their tokens; what is longer is cut at the next kind of place."""
    for batch in _batches(texts):
        short = [text for text in batch if len(text) <= _LONGEST_PIECE]
        encoded = iter(encode(short) if short else [])
        for text in batch:
            ids = next(encoded) if len(text) <= _LONGEST_PIECE else None
            if ids is not None and len(ids) <= chunk:
                yield text, ids
            elif level + 1 < len(_ENDS):
                yield from _pieces(_split(text, level + 1), level + 1, chunk, encode)
            elif len(text) == 1:
                raise ValueError(f"chunk is {chunk}; allowed: at least the {len(ids or ())} tokens of {text!r}")
            else:
                half = len(text) // 2
                yield from _pieces(iter((text[:half], text[half:])), level, chunk, encode)


def _split(text: str, level: int) -> Iterator[str]:
    start = 0
    for end in _ENDS[level].finditer(text):
        if end.end() > start:
            yield text[start : end.end()]
            start = end.end()
    if start < len(text):
        yield text[start:]


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
