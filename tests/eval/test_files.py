"""Benchmarks from users' files: fields, wordings, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.eval.config import Task
from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.files import DATASETS, file_samples
from lychee_sgl.eval.metrics import score
from lychee_sgl.eval.tasks import fingerprints, make_samples
from tests.eval.conftest import settings

if TYPE_CHECKING:
    from pathlib import Path


def count(prompt: str, prefix: str) -> int:
    return (len(prompt) + len(prefix)) // 4 + 10


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_of_longbench_can_be_asked_and_scored(tmp_path: Path, dataset: str) -> None:
    answer = "Paragraph 7" if dataset == "passage_retrieval_en" else "7"
    row = {"context": "Some {braces} here.", "input": "Which?", "answers": [answer], "all_classes": ["7", "8"]}
    (sample,) = file_samples(f"longbench/{dataset}", lines(tmp_path / "x.jsonl", row), max_tokens=None)
    assert "Some {braces} here." in sample.prompt
    assert score(answer, sample) == 1.0
    assert sample.max_tokens == DATASETS[dataset].max_tokens


def test_long_contexts_are_cut_in_the_middle(tmp_path: Path) -> None:
    row = {"context": "start " + "x" * 20000 + " end", "input": "Which?", "answers": ["a"], "all_classes": None}
    path = lines(tmp_path / "x.jsonl", row, row)
    asked = settings(tasks=[{"name": "longbench/qasper", "file": str(path), "samples": 1}], lengths=[700, 1000])
    (sample,) = make_samples(asked, count)
    assert 800 < count(sample.prompt, "") + 128 <= 1000
    assert sample.prompt.startswith("You are given a scientific article")
    assert sample.prompt.endswith("Question: Which?\n\nAnswer:")
    assert "xxxx" in sample.prompt


def test_the_second_longbench_has_four_choices(tmp_path: Path) -> None:
    row = {
        "context": " text ", "question": "Who?", "choice_A": "a", "choice_B": "b", "choice_C": "c", "choice_D": "d",
        "answer": "D",
    }  # fmt: skip
    path = tmp_path / "data.json"
    path.write_text(json.dumps([row]))
    (sample,) = file_samples("longbench2", path, max_tokens=None)
    assert (
        "<text>\ntext\n</text>\n\nWhat is the correct answer to this question: Who?\nChoices:\n(A) a\n" in sample.prompt
    )
    assert score("The correct answer is (D)", sample) == 1.0


def test_mathematics_takes_either_name_and_a_solution(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "m.jsonl",
        {"problem": "1+1?", "answer": 2},
        {"question": "2+2?", "answer": "4"},
        {"problem": "3+3?", "solution": "It is \\boxed{6}."},
    )
    samples = file_samples("maths", path, max_tokens=500)
    assert [score(f"\\boxed{{{value}}}", sample) for value, sample in zip((2, 4, 6), samples, strict=True)] == [1.0] * 3
    assert samples[0].prompt == "1+1?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert {sample.max_tokens for sample in samples} == {500}


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"maths needs a file of samples: .*none.jsonl"):
        file_samples("maths", tmp_path / "none.jsonl", max_tokens=None)
    with pytest.raises(EvalError, match=r"maths: .*e\.jsonl is empty"):
        file_samples("maths", lines(tmp_path / "e.jsonl"), max_tokens=None)
    path = lines(tmp_path / "f.jsonl", {"problem": "x", "answer": "1"}, {"answer": "1"})
    with pytest.raises(EvalError, match=r"entry 2 of .*f\.jsonl lacks the field 'question'"):
        file_samples("maths", path, max_tokens=None)
    with pytest.raises(
        EvalError, match=r"entry 1 of .*m\.jsonl: answer is ''; allowed: an expression that math-verify"
    ):
        file_samples("maths", lines(tmp_path / "m.jsonl", {"problem": "x", "answer": ""}), max_tokens=None)
    row = {"context": "c", "input": "q", "answers": "Paris", "all_classes": None}
    for change, said in (
        ({}, "answers is 'Paris'"),
        ({"answers": []}, r"answers is \[\]"),
        ({"answers": [1]}, "answers"),
    ):
        with pytest.raises(EvalError, match=rf"entry 1 of .*g\.jsonl: {said}.*; allowed: a list of one string or more"):
            file_samples("longbench/qasper", lines(tmp_path / "g.jsonl", {**row, **change}), max_tokens=None)
    with pytest.raises(EvalError, match=r"entry 1 of .*g\.jsonl: all_classes is None; allowed: a list"):
        file_samples("longbench/trec", lines(tmp_path / "g.jsonl", {**row, "answers": ["a"]}), max_tokens=None)
    with pytest.raises(EvalError, match="task is 'longbench/vcsum'; allowed of LongBench: longbench/narrativeqa"):
        file_samples("longbench/vcsum", path, max_tokens=None)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("qa_1", "qa_1 needs SQuAD 2.0's dev-v2.0.json: name it as `file` of the task"),
        ("maths", "maths needs a file: name it as `file` of the task"),
        ("niah", "task is 'niah'; allowed: niah_single_1, niah_single_2"),
    ],
)
def test_tasks_without_their_file_and_unknown_ones_are_refused(task: str, message: str) -> None:
    with pytest.raises(EvalError, match=message):
        list(make_samples(settings(tasks=[Task(name=task)]), count))


def test_a_scorer_that_is_missing_is_known_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lychee_sgl.eval.files.find_spec", lambda name: None)
    path = lines(tmp_path / "m.jsonl", {"problem": "x", "answer": "1"})
    with pytest.raises(EvalError, match=r"maths is scored by the package math_verify, which is missing: pip install"):
        file_samples("maths", path, max_tokens=None)
    with pytest.raises(EvalError, match="longbench/qmsum is scored by the package rouge_score"):
        file_samples("longbench/qmsum", path, max_tokens=None)


def test_a_file_is_known_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    row = {"problem": "x", "answer": "1"}
    one, same = lines(tmp_path / "m.jsonl", row), lines(tmp_path / "other" / "m.jsonl", row)
    prints = [fingerprints(settings(tasks=[{"name": "maths", "file": str(path)}])) for path in (one, same)]
    assert prints[0] == prints[1]
    assert list(prints[0]) == ["maths: m.jsonl"]
    lines(same, row, row)
    assert fingerprints(settings(tasks=[{"name": "maths", "file": str(same)}])) != prints[0]
    with pytest.raises(EvalError, match=r"maths: its file cannot be read: .*nowhere"):
        fingerprints(settings(tasks=[{"name": "maths", "file": "nowhere"}]))
