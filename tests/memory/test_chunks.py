"""Blocks are the document, cut at good places, none too long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lychee_sgl.memory.chunks import cut


def words(texts):
    return [[len(word) for word in re.findall(r"\S+|\s+", text)] for text in texts]


def octets(texts):
    return [list(text.encode()) for text in texts]


TEXTS = st.lists(st.sampled_from(["a", "Bc. ", "d\n", "\n\n", " ", "é你", "!", "x" * 30, "。"]), max_size=60).map(
    "".join
)


@given(TEXTS, st.integers(4, 40))
def test_joined_they_are_the_document_and_none_is_too_long(text: str, chunk: int) -> None:
    blocks = cut(text, chunk, octets)
    assert "".join(block.text for block in blocks) == text
    assert [block.index for block in blocks] == list(range(len(blocks)))
    for block in blocks:
        assert 0 < len(block.tokens) <= chunk
        assert bytes(list(block.tokens)).decode() == block.text


@given(TEXTS, TEXTS, st.integers(4, 40))
def test_equal_tokens_have_equal_digests_and_others_other_ones(one: str, other: str, chunk: int) -> None:
    blocks = [*cut(one, chunk, octets), *cut(other, chunk, octets)]
    by_digest = {block.digest: block.tokens for block in blocks}
    assert all(by_digest[block.digest] == block.tokens for block in blocks)
    assert len(by_digest) == len({tuple(block.tokens) for block in blocks})


def test_paragraphs_before_sentences_before_words() -> None:
    text = "One two. Three four.\n\nFive six.\n\nSeven eight nine ten eleven twelve."
    assert [block.text for block in cut(text, 9, words)] == [
        "One two. Three four.\n\n",
        "Five six.\n\nSeven eight ",
        "nine ten eleven twelve.",
    ]
    # words and white space are tokens: eight, four and four of the eleven, the other seven
    assert [len(block.tokens) for block in cut(text, 9, words)] == [8, 8, 7]


def test_a_sentence_that_fits_is_not_cut() -> None:
    text = "One two three. Four five six. Seven eight nine."
    assert [block.text for block in cut(text, 13, words)] == ["One two three. Four five six. ", "Seven eight nine."]


def test_a_word_beyond_the_chunk_is_cut_in_half() -> None:
    assert [block.text for block in cut("abcdefgh", 4, octets)] == ["abcd", "efgh"]


def test_nothing_of_nothing() -> None:
    assert cut("", 10, octets) == []


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk is 0; allowed: 1 or more"):
        cut("a", 0, octets)
    with pytest.raises(ValueError, match="chunk is 2; allowed: at least the 3 tokens of '你'"):
        cut("你", 2, octets)


def test_a_long_line_is_cut_before_it_is_counted() -> None:
    asked: list[int] = []

    def watched(texts):
        asked.extend(map(len, texts))
        return octets(texts)

    blocks = cut("ab " * 100_000, 1000, watched)
    assert sum(len(block.tokens) for block in blocks) == 300_000
    assert max(asked) <= 1 << 16
