"""Questions, answers on disk, and scores."""

import json
import math
import time
from itertools import pairwise
from pathlib import Path

import pytest

from lychee_sgl.heads.evaluate.run import ExamSettings, run_exam
from lychee_sgl.heads.evaluate.scores import score, score_table, versus, wilson
from lychee_sgl.heads.evaluate.store import Answer, Answers
from lychee_sgl.heads.evaluate.tasks import TASKS, Cell, question
from lychee_sgl.heads.evaluate.variants import Variant
from lychee_sgl.heads.haystack import Haystack
from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.measure import LoadedModel

PROSE = Haystack(
    tuple(f"Paragraph {i} speaks of nothing in particular, and does so at some length." for i in range(200)), "t"
)
EXAM = ExamSettings(tasks=("single", "multi-value"), lengths=(80, 120), questions=2, seed=5)


@pytest.mark.parametrize("task", TASKS)
def test_questions_of_every_task(task: str) -> None:
    cell = Cell(task=task, tokens=900)  # type: ignore[arg-type]
    made = [question(cell, i, seed=0, haystack=PROSE, chars_per_token=4.0) for i in range(40)]
    assert made[7] == question(cell, 7, seed=0, haystack=PROSE, chars_per_token=4.0)
    assert made[7].text != question(cell, 7, seed=1, haystack=PROSE, chars_per_token=4.0).text
    facts = {"single": 1, "multi-key": 4, "multi-value": 2}[task]
    for item in made:
        document, _, asked = item.text.rpartition("\n\n")
        assert len(item.depths) == facts
        assert len(item.answers) == (2 if task == "multi-value" else 1)
        assert all(document.count(answer) == 1 and answer not in asked for answer in item.answers)
        assert len(document) == pytest.approx(3600, rel=0.1)
        assert document.index(item.answers[0]) / len(document) == pytest.approx(item.depths[0], abs=0.03)
    first = sorted(item.depths[0] for item in made)
    assert first[0] < 0.12
    assert first[-1] > 0.88
    assert all(later - earlier < 0.08 for earlier, later in pairwise(first))


def test_multi_key_asks_for_one_of_four_places() -> None:
    item = question(Cell(task="multi-key", tokens=900), 3, seed=0, haystack=PROSE, chars_per_token=4.0)
    blocks = [block for block in item.text.split("\n\n")[:-1] if not block.startswith("Paragraph")]
    wanted = [block for block in blocks if item.answers[0] in block]
    assert len(blocks) == 4
    assert len(wanted) == 1
    named = [word.strip(".?") for word in item.text.rpartition("\n\n")[2].split() if word[0].isupper()][-1]
    assert [named in block for block in blocks].count(True) == 1
    assert named in wanted[0]


def test_a_reply_is_read_however_it_groups_digits() -> None:
    item = question(Cell(task="multi-value", tokens=900), 0, seed=0, haystack=PROSE, chars_per_token=4.0)
    one, two = item.answers
    assert item.found(f"They are {one[0]},{one[1:4]},{one[4:]} and {two[:3]}-{two[3:]}.") == 2
    assert item.found(f"It is {one}.") == 1
    assert item.found("I do not know.") == 0


def variants(tiny: LoadedModel) -> list[Variant]:
    return [Variant(name="heuristic", plan=heuristic_plan(tiny.shape), budget=budget) for budget in (16, 100_000)]


def test_an_exam_goes_on_where_it_stopped(tiny: LoadedModel, tmp_path: Path) -> None:
    whole, done = run_exam(tiny, variants(tiny), EXAM, haystack=PROSE, folder=tmp_path / "whole")
    assert done
    assert len(whole.questions) == 8
    folder = tmp_path / "parts"
    kept = folder / "part-0.jsonl"
    _, done = run_exam(tiny, variants(tiny), EXAM, haystack=PROSE, folder=folder, until=time.monotonic() - 1)
    assert not done
    assert len(kept.read_text().splitlines()) == 1  # what was asked, and no answer

    class Enough(Exception):
        pass

    def stop(done: int, everything: int) -> None:
        if done == 3:
            raise Enough

    with pytest.raises(Enough):
        run_exam(tiny, variants(tiny)[:1], EXAM, haystack=PROSE, folder=folder, tell=stop)
    with kept.open("a") as file:
        file.write('{"question": "single-80/1", "wan')  # killed in the middle of a line
    seen: list[int] = []
    again, done = run_exam(
        tiny, variants(tiny), EXAM, haystack=PROSE, folder=folder, tell=lambda number, of: seen.append(number)
    )
    assert done
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]  # the second variant was missing everywhere
    assert again.answers.keys() == whole.answers.keys()
    for key, given in again.answers.items():
        assert {name: (one.found, one.same) for name, one in given.items()} == {
            name: (one.found, one.same) for name, one in whole.answers[key].items()
        }
        assert given["heuristic@100000"].same
    seen.clear()
    run_exam(tiny, variants(tiny), EXAM, haystack=PROSE, folder=folder, tell=lambda number, of: seen.append(number))
    assert seen == []


def test_shares_are_the_whole(tiny: LoadedModel, tmp_path: Path) -> None:
    whole, _ = run_exam(tiny, variants(tiny), EXAM, haystack=PROSE, folder=tmp_path / "whole")
    for part in (0, 1, 2):
        _, done = run_exam(tiny, variants(tiny), EXAM, haystack=PROSE, folder=tmp_path / "shared", share=(part, 3))
        assert done
    seen: list[int] = []
    every, done = run_exam(
        tiny,
        variants(tiny),
        EXAM,
        haystack=PROSE,
        folder=tmp_path / "shared",
        tell=lambda number, of: seen.append(number),
    )
    assert done
    assert seen == []
    assert every.questions == whole.questions
    assert every.answers == whole.answers
    with pytest.raises(ValueError, match=r"share is \(3, 3\)"):
        run_exam(tiny, [], EXAM, haystack=PROSE, folder=tmp_path / "shared", share=(3, 3))


def test_answers_of_other_questions_are_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "part-0.jsonl"
    run_exam(tiny, [], EXAM, haystack=PROSE, folder=tmp_path, until=time.monotonic() - 1)
    other = ExamSettings(tasks=("single", "multi-value"), lengths=(80, 120), questions=2, seed=6)
    with pytest.raises(ValueError, match="holds other questions: seed was 5 and is 6"):
        run_exam(tiny, [], other, haystack=PROSE, folder=tmp_path)
    path.write_text("no JSON\n")
    with pytest.raises(ValueError, match="is not a file of answers"):
        run_exam(tiny, [], EXAM, haystack=PROSE, folder=tmp_path)
    twice = variants(tiny)[:1] * 2
    with pytest.raises(ValueError, match="allowed: different names"):
        run_exam(tiny, twice, EXAM, haystack=PROSE, folder=tmp_path / "b")


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="tasks holds 'double'; allowed: single, multi-key, multi-value"):
        ExamSettings(tasks=("double",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lengths is"):
        ExamSettings(lengths=(10,))
    with pytest.raises(ValueError, match="questions is 0"):
        ExamSettings(questions=0)


def test_wilsons_interval_by_hand() -> None:
    # 8 of 10 at z = 2: middle (0.8 + 0.2) / 1.4, half 2 / 1.4 * sqrt(0.016 + 0.01)
    low, high = wilson(8, 10, z=2.0)
    assert low == pytest.approx(1 / 1.4 - 2 / 1.4 * math.sqrt(0.026))
    assert high == pytest.approx(1 / 1.4 + 2 / 1.4 * math.sqrt(0.026))
    assert wilson(0, 200) == (0.0, pytest.approx(0.01885, abs=1e-4))
    assert wilson(200, 200)[1] == 1.0
    with pytest.raises(ValueError, match="right is 3 of 2"):
        wilson(3, 2)


def test_scores_by_hand(tmp_path: Path) -> None:
    answers = Answers.open(tmp_path / "a.jsonl", {"seed": 0})
    for number, (dense, plan) in enumerate(((2, 2), (2, 1), (1, 2), (0, 0))):
        answers.add(
            f"multi-value-80/{number}", {"wanted": 2},
            {"dense": Answer(dense, True, None), "p@8": Answer(plan, plan == 0, 0.5 + number / 10)},
        )  # fmt: skip
    answers.add("single-80/0", {"wanted": 1}, {"dense": Answer(1, True, None)})
    told = score(answers, answers.questions, "p@8")
    assert told is not None
    assert (told.asked, told.right, told.lost, told.gained) == (4, 2, 1, 1)
    assert (told.found, told.same, told.recall) == (0.625, 0.25, pytest.approx(0.65))
    table = score_table(Answers.open(tmp_path / "a.jsonl", {"seed": 0}), ["dense", "p@8", "none@8"])
    assert table["dense"]["all"]["right"] == 3
    assert table["p@8"].keys() == {"multi-value-80", "all"}
    assert table["none@8"] == {}
    json.dumps(table, allow_nan=False)


def test_two_variants_by_hand(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "part-0.jsonl")
    right, wrong = Answer(1, same=False, recall=None), Answer(0, same=False, recall=None)
    pairs = [(right, wrong)] * 4 + [(wrong, right)] + [(right, right)] * 3 + [(wrong, wrong)] * 2
    for number, (one, two) in enumerate(pairs):
        answers.add(f"single-2000/{number}", {"wanted": 1}, {"a@1": one, "b@1": two})
    answers.add("single-2000/90", {"wanted": 1}, {"a@1": right})  # b was not asked
    # four heads and a tail: (1 + 5) of 32 on either side
    assert versus(answers, "a@1", "b@1") == (4, 1, 0.375)
    assert versus(answers, "b@1", "a@1") == (1, 4, 0.375)
    assert versus(answers, "a@1", "a@1") == (0, 0, 1.0)
    assert versus(answers, "a@1", "c@1") is None
