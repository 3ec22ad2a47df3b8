"""Long answers with an end that can be checked: sums, variables, state machines, worked out step by step.

Every step is one a small model can do by looking back; what is hard is to do many of them without losing the place.
The answer grows with the length that is asked for, and the prompt shows one short worked example.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Final

from lychee_sgl.eval.fit import Recipe, Request
from lychee_sgl.eval.sample import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

STATES: Final = ("red", "blue", "green", "white", "black")
LETTERS: Final = "ab"
LEAST: Final = 4


def trace_recipes() -> tuple[Recipe, ...]:
    """The three tasks; the size is the number of steps."""
    tasks = (
        ("trace_sum", "adding up a list of digits, one line a step", _sum),
        ("trace_variables", "the values of variables that copy one another", _variables),
        ("trace_states", "the path of a state machine over a word", _states),
    )
    return tuple(
        Recipe(
            name=name,
            summary=summary,
            metric="final_line",
            max_tokens=0,
            build=build,
            step=lambda length: LEAST,
        )
        for name, summary, build in tasks
    )


def _sum(request: Request) -> Text:
    def worked(numbers: Sequence[int]) -> list[str]:
        total, lines = 0, []
        for number in numbers:
            lines.append(f"{total} + {number} = {total + number}")
            total += number
        return [*lines, f"Total: {total}"]

    numbers = [request.draw.randint(1, 9) for _ in range(request.size)]
    shown = [4, 2, 5, 1]
    return _text(
        "Add up the numbers one after the other, one line for each, and end with the total, as in the example.",
        (f"Numbers: {', '.join(map(str, shown))}", worked(shown)),
        (f"Numbers: {', '.join(map(str, numbers))}", worked(numbers)),
        start="0 +",
    )


def _variables(request: Request) -> Text:
    def worked(names: Sequence[str], rights: Sequence[str]) -> list[str]:
        values: dict[str, str] = {}
        for name, right in zip(names, rights, strict=True):
            values[name] = values.get(right, right)
        return [*(f"{name} = {value}" for name, value in values.items()), f"Last: {values[names[-1]]}"]

    def told(names: Sequence[str], rights: Sequence[str]) -> str:
        return "\n".join(["Program:", *(f"{a} = {b}" for a, b in zip(names, rights, strict=True))])

    names = _names(request.draw, request.size)
    rights = [str(request.draw.randint(10, 99))]
    for place in range(1, request.size):
        copies = place % 2 == 1 or place == request.size - 1
        rights.append(request.draw.choice(names[:place]) if copies else str(request.draw.randint(10, 99)))
    shown = (["QP", "KD", "ZT", "MB"], ["31", "QP", "58", "KD"])
    return _text(
        "Go through the program line by line and write the value of every variable, then the value of the last one, "
        "as in the example.",
        (told(*shown), worked(*shown)),
        (told(names, rights), worked(names, rights)),
        start=f"{names[0]} =",
    )


def _names(draw: Random, count: int) -> list[str]:
    letters = 2 if count <= 200 else 3 if count <= 8000 else 4  # at least twice as many names as are wanted
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(draw.choices(string.ascii_uppercase, k=letters))] = None
    return list(names)


def _states(request: Request) -> Text:
    def told(table: dict[tuple[str, str], str], word: str) -> str:
        rules = "\n".join(f"{state}, {letter}: {goal}" for (state, letter), goal in table.items())
        return f"Rules:\n{rules}\nStart: {STATES[0]}\nWord: {' '.join(word)}"

    def worked(table: dict[tuple[str, str], str], word: str) -> list[str]:
        state, lines = STATES[0], []
        for letter in word:
            goal = table[state, letter]
            lines.append(f"{state}, {letter}: {goal}")
            state = goal
        return [*lines, f"End: {state}"]

    def machine(draw: Random | None) -> dict[tuple[str, str], str]:
        pairs = [(state, letter) for state in STATES for letter in LETTERS]
        if draw is None:
            return {(state, letter): STATES[(place * 2 + 1) % 5] for place, (state, letter) in enumerate(pairs)}
        # no state leads to itself, so a machine never stands still
        return {(state, letter): draw.choice([s for s in STATES if s != state]) for state, letter in pairs}

    table, word = machine(request.draw), "".join(request.draw.choices(LETTERS, k=request.size))
    shown = (machine(None), "abba")
    return _text(
        "Follow the rules of the machine from the start, letter by letter: one line for each letter with the state, "
        "the letter and the next state; then the end, as in the example.",
        (told(*shown), worked(*shown)),
        (told(table, word), worked(table, word)),
        start=f"{STATES[0]}, {word[0]}:",
    )


def _text(task: str, example: tuple[str, list[str]], asked: tuple[str, list[str]], start: str) -> Text:
    shown = f"{example[0]}\nAnswer:\n" + "\n".join(example[1])
    label, _, answer = asked[1][-1].partition(": ")
    return Text(
        prompt=f"{task}\n\nExample\n{shown}\n\nNow do the same.\n{asked[0]}\nAnswer:\n",
        prefix=start,
        answers=(answer,),
        worked="\n".join(asked[1]).removeprefix(start),
        options={"label": label, "lines": asked[1]},
    )
