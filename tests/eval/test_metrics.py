"""Scores, with the awkward replies pinned."""

from __future__ import annotations

from typing import Any

import pytest

from lychee_sgl.eval.metrics import code_line, number_share, one_class, question_f1, rouge_l, score, steps_right
from lychee_sgl.eval.sample import Sample


def sample(metric: str, *answers: str, prefix: str = "", **options: Any) -> Sample:
    return Sample(
        task="t", length=100, number=0, prompt="p", prefix=prefix, answers=answers, metric=metric, max_tokens=9,
        options=options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "answers", "wanted"),
    [
        (" 1234567.", ("1234567",), 1.0),
        ("", ("1234567",), 0.0),
        ("\x00\x1f ", ("1234567",), 0.0),
        ("12345678", ("1234567",), 1.0),  # digits inside digits count, as in the definition
        ("1,234,567", ("1234567",), 0.0),  # and grouped digits do not
        ("ABC and def", ("abc", "DEF", "ghi", "jkl"), 0.5),
        ("1111111, 2222222", ("1111111", "2222222", "3333333"), 2 / 3),
        ("abcd", ("abc", "bcd"), 1.0),  # they may overlap
    ],
)
def test_all_that_are_expected_are_looked_for(reply: str, answers: tuple[str, ...], wanted: float) -> None:
    assert score(reply, sample("match_all", *answers)) == pytest.approx(wanted)


def test_one_of_several_answers_is_enough_for_a_question() -> None:
    assert score("It was Denver Broncos!", sample("match_any", "the Denver Broncos", "denver broncos")) == 1.0
    assert score("Denver", sample("match_any", "Denver Broncos")) == 0.0


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (" 4 = 4\n4 + 2 = 6\nTotal: 6", 1.0),
        ("Total: 6.", 1.0),
        ("Total: 5\nTotal: 6\n", 1.0),  # the last one counts
        ("Total: 6\nTotal: 5", 0.0),
        ("Total: 66", 0.0),
        ("Total: 6 apples", 0.0),
        ("The Total: 6", 0.0),
        ("6", 0.0),
        ("", 0.0),
    ],
)
def test_a_trace_counts_by_its_last_line(reply: str, wanted: float) -> None:
    assert score(reply, sample("final_line", "6", label="Total")) == wanted


def test_a_trace_is_followed_to_its_first_wrong_line() -> None:
    lines = ["0 + 4 = 4", "4 + 2 = 6", "6 + 5 = 11", "Total: 11"]
    asked = sample("final_line", "11", prefix="0 +", label="Total", lines=lines)
    assert steps_right(" 4 = 4\n4 + 2 = 6\n6 + 5 = 11\nTotal: 11", asked) == 1.0
    assert steps_right(" 4 = 4\n\n4  + 2 = 6\n6 + 5 = 12\nTotal: 11", asked) == 0.5
    assert steps_right("0 + 4 = 4\n4 + 2 = 6\n6 + 5 = 11\nTotal: 11", asked) == 1.0  # the prefix said again
    assert steps_right(" 5 = 4", asked) == 0.0
    assert steps_right("", asked) == 0.0


def test_question_f1_by_hand() -> None:
    assert question_f1("The Eiffel Tower!", "eiffel tower") == 1.0
    assert question_f1("the tower of Eiffel", "Eiffel tower") == pytest.approx(2 * 2 / (3 + 2))
    assert question_f1("", "x") == 0.0
    assert question_f1("x x", "x") == pytest.approx(2 / 3)  # each word as often as it is expected


def test_numbers_are_shared_out() -> None:
    assert number_share("Paragraph 3", "Paragraph 3") == 1.0
    assert number_share("3 or 4", "Paragraph 3") == 0.5
    assert number_share("none", "3") == 0.0


def test_code_is_compared_by_its_first_line_of_code() -> None:
    assert code_line("```\n# comment\nreturn x\nmore", "return x") == 1.0
    assert code_line("retur", "return") == pytest.approx(0.91)  # 10/11, in whole percent
    assert code_line("", "return") == 0.0


def test_a_class_counts_less_where_others_are_named() -> None:
    classes = ["city", "Other city", "Food"]
    assert one_class("city", "city", classes) == 1.0
    assert one_class("city or Food", "city", classes) == 0.5
    assert one_class("Food", "city", classes) == 0.0
    assert one_class("an Other city", "Other city", classes) == 1.0  # a part of the expected name is not another


def test_longbench_takes_the_best_of_its_answers() -> None:
    assert score("tower", sample("longbench", "castle", "the tower", kind="f1")) == 1.0
    assert (
        score("\nCity\nFood", sample("longbench", "City", kind="classes", classes=["City", "Food"], first_line=True))
        == 1.0
    )
    assert score("a b c", sample("longbench", "a x c", kind="rouge")) == pytest.approx(2 / 3)
    assert rouge_l("", "a") == 0.0


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("The correct answer is (B).", 1.0),
        ("**The correct answer is B**", 1.0),
        ("The correct answer is (C)", 0.0),
        ("The correct answer is Clear to me. The correct answer is (B).", 1.0),
        ("The correct answer is B, not that the correct answer is (C).", 1.0),
        ("B", 0.0),
    ],
)
def test_a_choice_wants_its_sentence(reply: str, wanted: float) -> None:
    assert score(reply, sample("choice", "B")) == wanted


@pytest.mark.parametrize(
    ("reply", "answer", "wanted"),
    [
        (r"so it is \boxed{204}", "204", 1.0),
        (r"from 3 and 4 we get \boxed{0.5}", r"\frac{1}{2}", 1.0),
        (r"\boxed{205}", "204", 0.0),
        ("no idea", "204", 0.0),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1.0),
        (r"\boxed{7}", r"Thus \boxed{7}.", 1.0),
        (r"\boxed{18.90}", r"\$18.90", 1.0),  # as MATH writes prices
        (r"\boxed{18.91}", r"\$18.90", 0.0),
        (r"\boxed{\frac12}", r"$\frac{1}{2}$", 1.0),
    ],
)
def test_mathematics_is_compared_as_mathematics(reply: str, answer: str, wanted: float) -> None:
    assert score(reply, sample("maths", answer)) == wanted
