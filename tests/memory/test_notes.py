"""A quote counts only if it stands in the block; notes fit their room and keep the document's order."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lychee_sgl.memory.notes import Memory, Note, _longest_run, begins_a_quote, passages
from lychee_sgl.memory.prompts import says_absent

BLOCK = "The sky is blue. The phone number of the Oslo office is 6797219. It rains\noften in Bergen! Who knows?"


def found(reply: str, block: str = BLOCK) -> list[str]:
    return [block[start:end] for start, end in passages(reply, block)]


@pytest.mark.parametrize(
    "reply",
    [
        "The phone number of the Oslo office is 6797219.",
        '1. "The phone number of the Oslo office is 6797219."',
        "- the phone number of the oslo office is 6797219",
        "The phone number of the Oslo  office is 6797219. And more that is made up.",
        "phone number of the Oslo office",
        "Thephone number of the Oslo office is 6797219.",
    ],
)
def test_a_quote_gives_its_whole_sentence(reply: str) -> None:
    assert found(reply) == ["The phone number of the Oslo office is 6797219."]


@pytest.mark.parametrize(
    "reply",
    [
        "none",
        "",
        "The phone number of the Oslo office is 1234567890.",
        "The phone number of the Lima office is 6797219.",
        "is blue",
        "The text above does not say it, so there is nothing to be copied from it.",
    ],
)
def test_what_does_not_stand_there_gives_nothing(reply: str) -> None:
    assert found(reply) == []


@pytest.mark.parametrize(
    ("reply", "quotes"),
    [
        ("The silver key is kept in the", True),
        ("The sentences that help are:", True),
        ('The sentence that helps is: "The silver key is kept', True),
        ("The silver key is kept in the third drawer of 67", True),
        ("Note: the text does not say where it is kept", False),
        ("Sure", True),
        ("", True),
        ("The text does not say where it is kept, it only", False),
        ("Nothing.\nThe text does not say where it is kept", False),
        ("The text says so.\nThe silver key is kept in", True),
    ],
)
def test_what_begins_as_a_quote_may_go_on(reply: str, quotes: bool) -> None:
    block = "A door stands open. The silver key is kept in the third drawer. Nobody knows."
    assert begins_a_quote(reply, block) is quotes


def test_two_quotes_and_one_across_a_line() -> None:
    assert found("The sky is blue.\nIt rains often in Bergen!") == ["The sky is blue.", "It rains\noften in Bergen!"]
    assert found("The sky is blue. The phone number of the Oslo office is 6797219.") == [
        "The sky is blue. The phone number of the Oslo office is 6797219."
    ]


def test_a_sentence_without_end_is_cut() -> None:
    block = "a" * 2000 + " needle in the middle " + "b" * 2000
    (text,) = found("needle in the middle", block)
    assert "needle in the middle" in text
    assert len(text) <= 1200


@given(st.text("ab c", max_size=60), st.text("ab c", min_size=12, max_size=20))
def test_the_longest_run_is_the_one_that_looking_everywhere_finds(block: str, quoted: str) -> None:
    sizes = {
        (start, end)
        for start in range(len(block))
        for end in range(start + 12, len(block) + 1)
        if end - start >= 0.8 * len(quoted) and block[start:end] in quoted
    }
    found = _longest_run(quoted, block)
    longest = max((end - start for start, end in sizes), default=None)
    assert (None if found is None else found[1] - found[0]) == longest
    assert found is None or found in sizes


def test_a_quote_that_nearly_stands_everywhere_is_looked_for_in_so_many_places() -> None:
    began = time.process_time()
    assert len(passages("=" * 500 + "x", "=" * 60_000)) == 1
    assert time.process_time() - began < 2  # all places take about four


NOTES = st.builds(
    Note, block=st.integers(0, 5), start=st.integers(0, 5), text=st.text("abc", min_size=1, max_size=4),
    score=st.integers(0, 3).map(float), tokens=st.integers(1, 9),
)  # fmt: skip


@given(st.lists(NOTES, max_size=12), st.integers(0, 30))
def test_the_memory_fits_keeps_order_and_drops_the_lowest_scores(notes: list[Note], room: int) -> None:
    memory = Memory()
    for note in notes:
        memory = memory.take((note,), room)
        assert memory.tokens <= room
    places = [(note.block, note.start) for note in memory.notes]
    assert places == sorted(places)
    assert len({note.text for note in memory.notes}) == len(memory.notes)
    assert set(memory.notes) <= set(notes)
    every = Memory().take(tuple(notes), 1000)
    assert len(every.notes) == len({note.text for note in notes})
    fewer = every.take((), room)
    dropped = [note for note in every.notes if note not in fewer.notes]
    assert all(gone.score <= held.score for gone in dropped for held in fewer.notes)


def test_a_note_that_never_fits_drives_out_no_other() -> None:
    small = Note(block=0, start=0, text="small", score=1.0, tokens=5)
    large = Note(block=1, start=0, text="large", score=9.0, tokens=11)
    assert Memory().take((small,), 10).take((large,), 10).notes == (small,)


@pytest.mark.parametrize(
    ("reply", "absent"),
    [
        ("The number is 6797219.", False),
        ("It is blue", False),
        ("The number is 123-456.", True),
        ("Not found.", True),
        ("The notes do not say it.", True),
        ("", True),
        ("none", True),
    ],
)
def test_a_draft_that_has_no_answer(reply: str, absent: bool) -> None:
    assert says_absent(reply, "The number is 6797219.") is absent
