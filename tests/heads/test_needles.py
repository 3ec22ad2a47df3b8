"""Needle questions: seeded, placed where they say, and never the same for calibration and evaluation."""

import itertools

import pytest

from lychee_sgl.heads.needles import CHARS_PER_TOKEN, KINDS, Kind, needle_prompts


def test_the_same_seed_gives_the_same_questions() -> None:
    first, again = (needle_prompts(6, tokens=(300, 900), seed=5, kind="evaluation") for _ in range(2))
    assert first == again
    other = needle_prompts(6, tokens=(300, 900), seed=6, kind="evaluation")
    assert not {prompt.answer for prompt in first} & {prompt.answer for prompt in other}


@pytest.mark.parametrize("kind", KINDS)
def test_needles_stand_where_they_say(kind: Kind) -> None:
    prompts = needle_prompts(12, tokens=(500, 6000), seed=3, kind=kind)
    for prompt in prompts:
        assert prompt.document.count(prompt.needle) == 1
        assert prompt.document.count(prompt.answer) == 1
        assert prompt.answer in prompt.needle
        assert prompt.answer not in prompt.question
        assert prompt.document.index(prompt.needle) == round(prompt.depth * len(prompt.document))
        paragraphs = prompt.document.split("\n\n")
        assert prompt.needle in paragraphs  # a paragraph of its own
        assert prompt.text == prompt.document + "\n\n" + prompt.question
        assert len(prompt.answer) == 7
        assert prompt.answer.isdigit()


def test_lengths_and_depths_cover_their_ranges() -> None:
    prompts = needle_prompts(9, tokens=(2000, 6000), seed=1, kind="evaluation", depths=(0.2, 0.8))
    sizes = sorted(len(prompt.document) / CHARS_PER_TOKEN for prompt in prompts)
    assert sizes == pytest.approx([2000 + 500 * i for i in range(9)], rel=0.02)
    depths = sorted(prompt.depth for prompt in prompts)
    assert depths == pytest.approx([0.2 + 0.075 * i for i in range(9)], abs=0.06)  # half a paragraph of 2000 tokens


def test_first_and_last_place_are_possible() -> None:
    first = needle_prompts(1, tokens=(400, 400), seed=1, kind="evaluation", depths=(0.0, 0.0))[0]
    assert first.document.startswith(first.needle)
    last = needle_prompts(1, tokens=(400, 400), seed=1, kind="evaluation", depths=(1.0, 1.0))[0]
    assert last.document.endswith(last.needle)


def test_calibration_and_evaluation_share_nothing() -> None:
    kinds = [needle_prompts(40, tokens=(500, 3000), seed=2, kind=kind) for kind in KINDS]
    texts = [
        {block for prompt in prompts for block in prompt.document.split("\n\n")[:-1] if block != prompt.needle}
        for prompts in kinds
    ]
    assert not texts[0] & texts[1]
    for one, other in itertools.product(*kinds):
        assert one.question != other.question
        assert one.answer != other.answer


def test_answers_are_found_however_the_digits_are_grouped() -> None:
    prompt = needle_prompts(1, tokens=(100, 100), seed=1, kind="evaluation")[0]
    number = int(prompt.answer)
    assert prompt.is_answered_by(f"It is {number}.")
    assert prompt.is_answered_by(f"It is {number:,}.")
    assert not prompt.is_answered_by(f"It is {number + 1}.")
    assert not prompt.is_answered_by("")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"tokens": (15, 20)}, r"tokens is \(15, 20\)"),
        ({"tokens": (200, 100)}, "tokens is"),
        ({"kind": "demo"}, "kind is 'demo'; allowed: calibration, evaluation"),
        ({"depths": (0.5, 0.4)}, "depths is"),
        ({"depths": (0.5, 1.1)}, "depths is"),
        ({"chars_per_token": 0}, "chars_per_token is 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    given = {"count": 1, "tokens": (100, 200), "seed": 1, "kind": "evaluation", **arguments}
    with pytest.raises(ValueError, match=message):
        needle_prompts(given.pop("count"), **given)  # type: ignore[arg-type]
