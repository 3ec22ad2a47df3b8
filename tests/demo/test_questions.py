import pytest

from lychee_sgl.demo import questions
from lychee_sgl.heads.needles import needle_prompts


@pytest.fixture
def lengths() -> questions.Lengths:
    return questions.Lengths(chars_per_token=4.5, longest=7000)


def test_tokens_of_the_probe_give_characters_per_token() -> None:
    found = questions.lengths(probe_tokens=len(questions.probe().text) // 4, window=8192)
    assert found.chars_per_token == pytest.approx(4, abs=0.01)
    assert found.longest == 7000


def test_texts_fit_a_smaller_window() -> None:
    assert questions.lengths(probe_tokens=500, window=4096).longest == 4096 - 700


def test_a_window_without_room_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match="window is 2048 tokens; the demo needs 2700"):
        questions.lengths(probe_tokens=500, window=2048)


def test_the_tables_fact_stands_in_the_middle_of_the_longest_text(lengths: questions.Lengths) -> None:
    prompt = questions.table_question(lengths)
    assert len(prompt.document) == pytest.approx(7000 * 4.5, rel=0.02)
    assert prompt.depth == pytest.approx(0.5, abs=0.03)
    assert prompt == questions.table_question(lengths)


def test_ten_different_questions_from_2000_tokens_on(lengths: questions.Lengths) -> None:
    prompts = questions.ten_questions(lengths)
    sizes = sorted(len(prompt.document) / 4.5 for prompt in prompts)
    assert len({prompt.answer for prompt in prompts}) == 10
    assert (sizes[0], sizes[-1]) == (pytest.approx(2000, rel=0.02), pytest.approx(7000, rel=0.02))
    assert prompts == questions.ten_questions(lengths)
    assert questions.table_question(lengths).answer not in {prompt.answer for prompt in prompts}


def test_nothing_is_shared_with_what_plans_are_calibrated_on(lengths: questions.Lengths) -> None:
    ours = questions.ten_questions(lengths)
    paragraphs = {block for prompt in ours for block in prompt.document.split("\n\n")[:-1]}
    calibrated = needle_prompts(8, tokens=(1500, 3000), seed=0, kind="calibration")
    assert paragraphs.isdisjoint(block for prompt in calibrated for block in prompt.document.split("\n\n")[:-1])
    assert {prompt.question for prompt in ours}.isdisjoint(prompt.question for prompt in calibrated)
