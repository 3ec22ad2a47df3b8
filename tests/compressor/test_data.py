"""What is trained on and judged by: windows, facts, questions, and that the two share nothing."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from lychee_sgl.compressor.corpus import held_out_text, training_text
from lychee_sgl.compressor.data import Sample, Samples
from lychee_sgl.compressor.evaluate import held_out_samples
from lychee_sgl.compressor.facts import HELD_OUT, HELD_OUT_NAMES, HELD_OUT_WORDINGS, WORDINGS, Facts, facts_of
from lychee_sgl.compressor.model import Compressor
from lychee_sgl.compressor.reader import read
from lychee_sgl.compressor.settings import TASKS, TrainSettings
from tests.compressor.conftest import SETTINGS, TEXT, WINDOW


@pytest.fixture
def samples(tokenizer: Any) -> Samples:
    return Samples(tokenizer, TEXT, window=WINDOW, settings=SETTINGS)


def test_samples_say_what_they_are(samples: Samples, tokenizer: Any) -> None:
    def text(ids: tuple[int, ...]) -> str:
        return str(tokenizer.decode(ids))

    batch = samples.batch(0)
    assert [sample.task for sample in batch] == list(TASKS)
    repeat, onward, asked = batch
    assert [len(sample.window) for sample in batch[:2]] == [WINDOW, WINDOW]
    assert repeat.target == repeat.window
    assert text(repeat.before) == "<s>user\n"
    assert text(repeat.after) == "\n\nRepeat the text above, word for word.<e>\n<s>assistant\n"
    at = samples.tokens.index(onward.target[0])
    assert len(onward.target) == SETTINGS.target
    joined = list(onward.window + onward.target)
    assert any(samples.tokens[i : i + len(joined)] == joined for i in range(at % 7, len(samples.tokens)) if
               samples.tokens[i] == joined[0])  # fmt: skip
    stem = text(asked.after).rpartition("assistant\n")[2]
    value = text(tuple(asked.target[place] for place in asked.places))
    assert f"{stem}{value}" in text(asked.window)
    assert value.startswith(" ")


def talked(sample: Sample, tokenizer: Any) -> list[tuple[str, str, str]]:
    """Question, beginning and rest of the answer, of each turn of a conversation about a text."""
    said = [*sample.after, *sample.target]
    scored = {len(sample.after) + place for place in sample.places}
    starts = [place for place in sorted(scored) if place - 1 not in scored]
    turns, at = [], 0
    for start in starts:
        end = next(place for place in range(start, len(said) + 1) if place not in scored)
        given = str(tokenizer.decode(said[at:start]))
        question, answering, stem = given.rpartition("<e>\n<s>assistant\n")
        assert answering
        if at:
            assert question.startswith("<e>\n<s>user\n")
        turns.append((question.rpartition("\n")[2], stem, str(tokenizer.decode(said[start:end]))))
        at = end
    assert at == len(said)
    return turns


def test_facts_stand_whole_in_a_text_and_all_are_asked_for(tokenizer: Any) -> None:
    settings = TrainSettings(batch=3, target=8, facts=4)
    seen: dict[int, int] = {}
    for window in (2 * WINDOW, 5 * WINDOW):
        samples, quoted, turns = Samples(tokenizer, TEXT, window=window, settings=settings), 0, set()
        for number in range(40):
            asked = samples.sample("answer", Random(number))
            windows, rest = divmod(len(asked.window), window)
            assert rest == 0
            seen[windows] = seen.get(windows, 0) + 1
            told, every = " ".join(tokenizer.decode(asked.window).split()), talked(asked, tokenizer)
            turns.add(len(every))
            assert len({stem for _, stem, _ in every}) == len(every)
            for question, stem, value in every:
                assert question.strip()
                assert f"{stem}{value}" in told
                if not value.endswith("."):
                    quoted += 1
                    assert stem in " ".join(" ".join(TEXT).split())
                    assert told.count(stem) == 1
        assert 0 < quoted < 40
        assert turns >= {1, 2, 3}
    assert {*seen} == {1, 2, 4}
    assert min(seen.values()) >= 10
    with pytest.raises(ValueError, match="for a fact to stand in it"):
        Samples(tokenizer, TEXT, window=4, settings=replace(settings, windows=1)).sample("answer", Random(0))


def test_no_more_windows_than_the_text_has_room_for(tokenizer: Any) -> None:
    samples = Samples(tokenizer, TEXT, window=WINDOW, settings=replace(SETTINGS, windows=1000))
    drawn = {len(samples.sample("answer", Random(number)).window) // WINDOW for number in range(60)}
    most = (len(samples.tokens) - SETTINGS.target - 1) // WINDOW
    assert drawn == {1 << power for power in range(most.bit_length())}
    with pytest.raises(ValueError, match="windows is 0"):
        replace(SETTINGS, windows=0)


def test_only_what_is_asked_for_is_scored(compressor: Compressor, tokenizer: Any) -> None:
    """A conversation's later answers are read as if each were the last thing said."""
    samples = Samples(tokenizer, TEXT, window=WINDOW, settings=TrainSettings(batch=3, target=8, facts=3, windows=1))
    asked = next(
        one for one in (samples.sample("answer", Random(n)) for n in range(40)) if len(one.places) < len(one.target)
    )
    blocks = [compressor.embed(torch.tensor(asked.window))]
    with torch.no_grad():
        all_of_it = read(compressor, [replace(asked, scored=None)], blocks)
        some = read(compressor, [asked], blocks)
    assert some.row.tolist() == [0] * len(asked.places)
    torch.testing.assert_close(some.loss, all_of_it.loss[list(asked.places)])
    assert some.right.tolist() == all_of_it.right[list(asked.places)].tolist()


def test_a_fact_that_has_no_room_is_drawn_again(tokenizer: Any) -> None:
    """A training does not end at the step that happens to draw a long one."""
    long = ("The longest of all the wordings that there are, of no use to a window as short as {name} is", "{name}?")
    facts = Facts((long, ("{name} =", "What is {name}?")), ("wind", "rain"))
    samples = Samples(tokenizer, TEXT, window=32, settings=replace(SETTINGS, windows=1), facts=facts)
    assert len(samples.ids(long[0])) > 32
    told = [talked(samples.sample("answer", Random(number)), tokenizer)[0][0] for number in range(20)]
    assert all("What is" in one for one in told)


def test_names_and_values_are_of_many_kinds() -> None:
    facts = facts_of([*TEXT, "Lisbon and lisbon. " * 9, "x1y2z3 ab longerthantenletters naïve " * 9, "tokeniser " * 9])
    assert {"wind", "older", "tokeniser", "violin"} <= {*facts.names}
    assert {"lisbon", "lisb", "longerthan", "ab", "naïve"}.isdisjoint(facts.names)
    draw = Random(0)
    names = [name for _ in range(300) for name in facts.some(draw, 3)]
    assert {(len(name.split()), name[0].isupper()) for name in names} == {(1, False), (1, True), (2, False), (2, True)}
    values = [facts.value(draw) for _ in range(1000)]
    assert {len(value) for value in values if value.isdigit()} >= {*range(3, 10)}
    assert {len(value.split()) for value in values if value.replace(" ", "").isalpha()} == {1, 2, 3}
    codes = {value for value in values if any(map(str.isdigit, value)) and any(map(str.isalpha, value))}
    assert any("-" in code for code in codes)
    assert any(code.upper() == code for code in codes)
    assert any(code.lower() == code for code in codes)
    assert not any("." in value or "\n" in value for value in values)  # what would end an answer too soon
    for number in range(200):
        some = facts.some(Random(number), 5)
        assert len({*some}) == 5


def test_what_is_judged_by_is_names_as_they_are_and_seven_digits() -> None:
    draw = Random(0)
    assert {*HELD_OUT.some(draw, len(HELD_OUT_NAMES))} == {*HELD_OUT_NAMES}
    assert all(value.isdigit() and len(value) == 7 for value in (HELD_OUT.value(draw) for _ in range(50)))


def test_samples_follow_from_seed_and_step(samples: Samples, tokenizer: Any) -> None:
    again = Samples(tokenizer, TEXT, window=WINDOW, settings=SETTINGS)
    assert again.batch(5) == samples.batch(5) != samples.batch(6)
    with pytest.raises(ValueError, match="allowed: 136 or more"):
        Samples(tokenizer, TEXT[:1], window=WINDOW, settings=SETTINGS)


def test_nothing_is_judged_by_what_was_trained_on() -> None:
    names = facts_of([*HELD_OUT_NAMES, *map(str.lower, HELD_OUT_NAMES)] * 9).names
    assert {name.lower() for name in HELD_OUT_NAMES}.isdisjoint(names)
    beginnings = {fact.format(name="x") for fact, _ in HELD_OUT_WORDINGS}
    assert beginnings.isdisjoint(fact.format(name="x") for fact, _ in WORDINGS)
    # not a noun of theirs, either
    assert not any(
        word in text.lower()
        for pair in WORDINGS for text in pair for word in ("magic", "special", "ticket", "winning", "phone", "office")
    )  # fmt: skip
    assert len({fact for fact, _ in WORDINGS}) == len({question for _, question in WORDINGS}) == len(WORDINGS)
    trained = training_text(packages=("rich", "not_installed_anywhere"))
    assert "docstrings of rich" in trained.origin
    assert "not_installed_anywhere" not in trained.origin
    assert set(trained.paragraphs).isdisjoint(held_out_text().paragraphs)
    assert len(set(trained.paragraphs)) == len(trained.paragraphs) > 500


def test_a_reader_that_sees_the_answer_is_right(tokenizer: Any) -> None:
    """Every question's answer stands in its window, so a perfect reader has them all."""
    _, answer = held_out_samples(tokenizer, TEXT, SETTINGS, window=WINDOW, windows=2, questions=20)
    draw = Random(0)
    for sample in draw.sample(answer, 10):
        assert tokenizer.decode(sample.target) in tokenizer.decode(sample.window)
        assert len(tokenizer.decode(sample.target).strip()) == 7
