"""Samples: where the keys stand, that they follow from seed and number alone, and what is refused."""

import json
from pathlib import Path
from random import Random

import pytest

from lychee_sgl.heads.haystack import Haystack, file_haystack, python_haystack
from lychee_sgl.heads.measure import LoadedModel
from lychee_sgl.heads.train.data import NATO, Passkeys, Sample, read_questions

PROSE = Haystack(
    tuple(f"Paragraph {i} speaks of nothing in particular, and does so at some length." for i in range(200)), "t"
)


def passkeys(tiny: LoadedModel, **more: object) -> Passkeys:
    return Passkeys(loaded=tiny, haystack=PROSE, **{"seed": 3, "context": (200, 900), **more})  # type: ignore[arg-type]


def test_keys_stand_in_the_document_and_the_answer_repeats_them(tiny: LoadedModel) -> None:
    lengths, counts = set(), set()
    for index in range(30):
        document, question, answer = passkeys(tiny, words=5).text(index)
        facts = [block for block in document.split("\n\n") if block.startswith("The pass key of the ")]
        sentences = [f"{sentence.rstrip('.')}." for sentence in answer.split(". ")]
        assert set(sentences) <= set(facts)
        assert all(document.count(fact) == 1 for fact in facts)
        assert question.count(" and ") == len(sentences) - 1
        for sentence in sentences:
            key = sentence.rpartition(" is ")[2].rstrip(".")
            assert key.isdigit() or (len(key.split()) == 5 and set(key.split()) <= set(NATO))
            assert key not in question
        assert 200 * 4.5 * 0.8 < len(document) < 900 * 4.5 * 1.2
        lengths.add(len(document) // 500)
        counts.add(len(facts))
    assert len(lengths) > 4
    assert counts == {2, 3, 4, 5, 6}


def test_depths_are_where_they_are_asked_for() -> None:
    document = PROSE.bury(Random(0), ["FIRST.", "SECOND."], [0.25, 0.75], 1000)
    assert document.index("FIRST.") / len(document) == pytest.approx(0.25, abs=0.03)
    assert document.index("SECOND.") / len(document) == pytest.approx(0.75, abs=0.03)
    assert len(document) == pytest.approx(4500, abs=100)
    with pytest.raises(ValueError, match="more text than there is"):
        PROSE.bury(Random(0), ["x"], [0.5], 100_000)


def test_a_sample_follows_from_seed_and_number(tiny: LoadedModel) -> None:
    assert passkeys(tiny).sample(7) == passkeys(tiny).sample(7)
    assert passkeys(tiny).sample(7) != passkeys(tiny).sample(8)
    assert passkeys(tiny).sample(7) != passkeys(tiny, seed=4).sample(7)
    sample = passkeys(tiny).sample(7)
    text = tiny.tokenizer.decode(sample.prompt)
    assert text.endswith("?</s><a>")  # up to where the model answers
    assert tiny.tokenizer.decode(sample.answer) == passkeys(tiny).text(7)[2]


def test_refused_numbers(tiny: LoadedModel) -> None:
    for change, message in (
        ({"needles": 1}, "needles is 1; allowed: 2 to 16"),
        ({"words": 0}, "words is 0"),
        ({"context": (900, 200)}, "context is"),
    ):
        with pytest.raises(ValueError, match=message):
            passkeys(tiny, **change)


def test_pythons_documentation_is_split_in_two() -> None:
    one, other = python_haystack("calibration"), python_haystack("evaluation")
    assert not set(one.paragraphs) & set(other.paragraphs)
    assert min(sum(map(len, half.paragraphs)) for half in (one, other)) > 200_000
    assert "PSF-2.0" in one.origin
    assert one.digest != other.digest


def test_text_files_are_a_haystack(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A table\n\n" + "Some prose that is long enough to count. " * 4 + "\n\nEnd")
    (tmp_path / "b.bin").write_text("Not read. " * 40)
    told = file_haystack(tmp_path)
    assert len(told.paragraphs) == 1
    assert told.paragraphs[0].endswith("to count.")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match="with prose"):
        file_haystack(tmp_path)


def lines(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n")
    return path


def test_questions_from_a_file(tiny: LoadedModel, tmp_path: Path) -> None:
    entries = [{"context": f"Text {i}.", "question": "Which?", "answer": f"Number {i}."} for i in range(5)]
    data = read_questions(lines(tmp_path / "q.jsonl", *entries), tiny, longest=200, seed=1)
    rounds = [[data.sample(5 * turn + i) for i in range(5)] for turn in range(3)]
    assert all(set(part) == set(data.samples) for part in rounds)
    assert len({tuple(part) for part in rounds}) == 3
    assert tiny.tokenizer.decode(data.samples[2].answer) == "Number 2."
    assert isinstance(data.samples[0], Sample)
    assert "5 questions of q.jsonl" in data.origin


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([1], r"line 1: \[1\]; allowed: an object"),
        ({"question": "a?"}, "line 1: answer is None"),
        ({"question": "", "answer": "b"}, "line 1: question is ''"),
        ({"context": 3, "question": "a?", "answer": "bb"}, "line 1: context is 3"),
        ({"question": "a" * 300, "answer": "bb"}, "tokens; allowed: up to 200"),
        ({"question": "a?", "answer": "b"}, "answer has 1 tokens; allowed: 2 or more"),
    ],
)
def test_bad_lines_are_named(tiny: LoadedModel, tmp_path: Path, entry: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_questions(lines(tmp_path / "q.jsonl", entry), tiny, longest=200, seed=1)


def test_a_file_without_questions(tiny: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(tmp_path / "q.jsonl", tiny, longest=200, seed=1)
    (tmp_path / "q.jsonl").write_text("{")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_questions(tmp_path / "q.jsonl", tiny, longest=200, seed=1)
