"""Variable tracking, `vt`: a chain of assignments in noise, with one worked example in front."""

from __future__ import annotations

import string
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Final

from lychee_sgl.eval.fit import Counter, Recipe, Request, search
from lychee_sgl.eval.ruler.needles import NOISE
from lychee_sgl.eval.sample import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

TEMPLATE: Final = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above."
)
PREFIX: Final = (
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{count} variables are assigned the value {query}, they are: "
)
HOPS: Final = 4
MAX_TOKENS: Final = 30
EXAMPLE_TOKENS: Final = 500
EXAMPLE_STEP: Final = 5


def variable_recipe() -> Recipe:
    """The task. The example's length is found once for each length, its names and number differ in every sample."""
    sizes: dict[int, int] = {}

    def example(request: Request) -> Text:
        return _text(request.size, request.draw, request.draw, letters=3)

    def build(request: Request) -> Text:
        places = Random(f"vt example {request.seed} {request.length}")  # the same in all samples, but for the names
        shown = _text(sizes[request.length], request.draw, places, letters=3)
        asked = _text(request.size, request.draw, request.draw, letters=5)
        worked = f"{shown.prompt}{shown.prefix} {' '.join(shown.answers)}\n"
        return replace(asked, prompt=f"{worked}\n{asked.prompt}")

    def choose(recipe: Recipe, length: int, seed: int, tokens: Counter) -> int:
        short = replace(recipe, name="vt example", build=example, step=lambda _: EXAMPLE_STEP)
        # the definition counts no answer here, and counts no template: neither matters to an example of this size
        sizes[length] = search(short, EXAMPLE_TOKENS + MAX_TOKENS, seed, tokens)
        return search(recipe, length, seed, tokens)

    return Recipe(
        name="vt",
        summary="all variables of a chain of assignments in noise",
        metric="match_all",
        max_tokens=MAX_TOKENS,
        build=build,
        step=lambda length: 5 if length < 4096 else 10,
        choose=choose,
    )


def _text(noises: int, draw: Random, places: Random, letters: int) -> Text:
    names = _names(draw, letters)
    value = str(draw.randrange(10_000, 99_999))
    chain = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in pairwise(names))]
    lines = [NOISE] * noises
    for shift, place in enumerate(sorted(places.sample(range(noises), len(chain)))):
        lines.insert(place + shift, chain[shift])
    return Text(
        prompt=TEMPLATE.format(context="\n".join(lines).replace(". \n", ".\n"), query=value),
        prefix=PREFIX.format(count=len(names), query=value),
        answers=tuple(names),
    )


def _names(draw: Random, letters: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < HOPS + 1:
        name = "".join(draw.choices(string.ascii_uppercase, k=letters))
        if not _inside(name, ("VAR", *names)):
            names[name] = None
    return list(names)


def _inside(name: str, others: Iterable[str]) -> bool:
    return any(name in other or other in name for other in others)
