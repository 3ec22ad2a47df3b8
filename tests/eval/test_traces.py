"""Traces: what is asked can be worked out from the prompt, and ends in what is expected."""

from __future__ import annotations

import re

import pytest

from lychee_sgl.eval.metrics import score, steps_right
from lychee_sgl.eval.traces import trace_recipes

RECIPES = {recipe.name: recipe for recipe in trace_recipes()}


def count(prompt: str, prefix: str) -> int:
    return (len(prompt) + len(prefix)) // 4 + 10


def solve(name: str, prompt: str) -> list[str]:
    """Work a trace out by another way than the generator's."""
    asked = prompt.split("Now do the same.\n")[1]
    match name:
        case "trace_sum":
            numbers = [int(word) for word in re.findall(r"\d+", asked)]
            steps = [f"{sum(numbers[:i])} + {n} = {sum(numbers[: i + 1])}" for i, n in enumerate(numbers)]
            return [*steps, f"Total: {sum(numbers)}"]
        case "trace_variables":
            rows = dict(line.split(" = ") for line in asked.splitlines()[1:-1])

            def value(name: str) -> str:
                return value(rows[name]) if rows[name] in rows else rows[name]

            return [*(f"{name} = {value(name)}" for name in rows), f"Last: {value(list(rows)[-1])}"]
        case _:
            rules, rest = asked.split("Rules:\n")[1].split("\nStart: ")
            table = dict(line.split(": ") for line in rules.splitlines())
            state, word = rest.split("\nAnswer")[0].split("\nWord: ")
            lines = []
            for letter in word.split():
                lines.append(f"{state}, {letter}: {table[f'{state}, {letter}']}")
                state = table[f"{state}, {letter}"]
            return [*lines, f"End: {state}"]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("length", [600, 3000])
def test_the_expected_trace_is_the_right_one_and_fits(name: str, length: int) -> None:
    samples = list(RECIPES[name].samples(length, 3, 7, count))
    assert len({sample.prompt for sample in samples}) == 3
    for sample in samples:
        lines = solve(name, sample.prompt)
        assert sample.options["lines"] == lines
        assert lines[-1] == f"{sample.options['label']}: {sample.answers[0]}"
        whole = "\n".join(lines)
        assert whole.startswith(sample.prefix)
        reply = whole.removeprefix(sample.prefix)
        assert (score(reply, sample), steps_right(reply, sample)) == (1.0, 1.0)
        assert score("\n".join(lines[:-1]), sample) == 0.0
        assert len(reply) // 4 < sample.max_tokens
        assert count(sample.prompt, sample.prefix) + sample.max_tokens <= length


@pytest.mark.parametrize("name", RECIPES)
def test_longer_samples_have_more_steps(name: str) -> None:
    short, long = (next(RECIPES[name].samples(length, 1, 7, count)) for length in (600, 3000))
    assert len(long.options["lines"]) > 4 * len(short.options["lines"])


@pytest.mark.parametrize("name", RECIPES)
def test_the_worked_example_is_right(name: str) -> None:
    prompt = next(RECIPES[name].samples(600, 1, 7, count)).prompt
    example = prompt.split("Example\n")[1].split("\n\nNow do the same.")[0]
    asked, worked = example.split("Answer:\n")
    assert solve(name, f"Now do the same.\n{asked}Answer:\n") == worked.splitlines()


def test_no_machine_stands_still() -> None:
    for sample in RECIPES["trace_states"].samples(900, 5, 3, count):
        rules = sample.prompt.split("Now do the same.\n")[1].split("\nStart")[0]
        assert all(line.split(",")[0] != line.split(": ")[1] for line in rules.splitlines()[1:])


def test_a_length_without_room_for_four_steps_is_refused() -> None:
    from lychee_sgl.eval.errors import EvalError

    with pytest.raises(EvalError, match="trace_states at a length of 64: the least there can be is"):
        next(RECIPES["trace_states"].samples(64, 1, 1, count))


def test_there_are_names_for_as_many_variables_as_are_wanted() -> None:
    from random import Random

    from lychee_sgl.eval.traces import _names

    for wanted in (200, 201, 8000, 8001, 20_000):  # of two letters there are 676 names, of three 17,576
        names = _names(Random(1), wanted)
        assert len(set(names)) == len(names) == wanted
        assert 26 ** len(names[0]) > 2 * wanted
