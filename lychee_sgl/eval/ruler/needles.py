"""Needles in a haystack: the eight tasks `niah_*`, and a grid of depths and lengths."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final, Literal

from lychee_sgl.eval.fit import Recipe, Request
from lychee_sgl.eval.ruler.vocabulary import adjectives, nouns
from lychee_sgl.eval.sample import Text
from lychee_sgl.eval.text import sentences

if TYPE_CHECKING:
    from lychee_sgl.eval.text import Prose

TEMPLATE: Final = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?"
)
PREFIX: Final = " The special magic {kind} for {query} mentioned in the provided text are"
NEEDLE: Final = "One of the special magic {kind} for {key} is: {value}."
NOISE: Final = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
SINGULAR: Final = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))
DEPTHS: Final = tuple(round(100 * place / 39) for place in range(40))
"""In percent of the sentences."""
MAX_TOKENS: Final = 128
GRID_STEP: Final = 25
"""Words of prose by which a text of the grid is made longer."""

Thing = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needles:
    """What is hidden where, in the words of RULER's configuration.

    Attributes:
        haystack: prose, one sentence again and again, or other needles.
        keys: what is asked for is named by these.
        values: what is asked for.
        num_keys: needles that differ in their key; at least as many as queries.
        num_values: needles for each key.
        num_queries: keys that are asked for.
    """

    haystack: Literal["essay", "noise", "needle"] = "essay"
    keys: Thing = "words"
    values: Thing = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


TASKS: Final[dict[str, tuple[Needles, str]]] = {
    "niah_single_1": (Needles(haystack="noise"), "a number in one sentence repeated"),
    "niah_single_2": (Needles(), "a number in prose"),
    "niah_single_3": (Needles(values="uuids"), "a UUID in prose"),
    "niah_multikey_1": (Needles(num_keys=4), "one of four numbers in prose"),
    "niah_multikey_2": (Needles(haystack="needle"), "one number among needles only"),
    "niah_multikey_3": (Needles(haystack="needle", keys="uuids", values="uuids"), "one UUID among needles only"),
    "niah_multivalue": (Needles(num_values=4), "four numbers of one key in prose"),
    "niah_multiquery": (Needles(num_keys=4, num_queries=4), "the numbers of four keys in prose"),
}


def needle_recipes(prose: Prose) -> tuple[Recipe, ...]:
    """The eight tasks."""
    return tuple(
        Recipe(
            name=name,
            summary=summary,
            metric="match_all",
            max_tokens=MAX_TOKENS,
            build=partial(build, needles, prose),
            step=partial(_step, needles),
        )
        for name, (needles, summary) in TASKS.items()
    )


def grid_recipe(prose: Prose, depths: int) -> Recipe:
    """`niah_single_2` with the needle at even depths, one after the other, and prose that begins anywhere."""

    def depth(number: int) -> float:
        return (number % depths) / max(1, depths - 1) if depths > 1 else 0.5

    def build_at(request: Request) -> Text:
        start = request.draw.randrange(len(prose.words))
        text = " ".join(prose.first(start + request.size).split(" ")[start:])
        needles, queries, answers = _draw(Needles(), request.draw)
        cut = sentences(text)
        cut.insert(round(depth(max(0, request.number)) * len(cut)), needles[0])
        return _ask(Needles(), " ".join(cut), queries, answers)

    return Recipe(
        name="needle",
        summary="a number in prose, depth by depth",
        metric="match_all",
        max_tokens=32,
        build=build_at,
        step=lambda length: GRID_STEP,
        depth=depth,
    )


def build(needles: Needles, prose: Prose, request: Request) -> Text:
    """One text with `request.size` words, sentences or needles of haystack."""
    facts, queries, answers = _draw(needles, request.draw)
    Random(request.seed).shuffle(facts)
    if needles.haystack == "essay":
        context = _in_prose(prose.first(request.size), facts, request.draw)
    else:
        lines = [_filling(needles, request.draw) for _ in range(request.size)]
        places = sorted(request.draw.sample(range(request.size), len(facts)), reverse=True)
        for place, fact in zip(places, facts, strict=True):
            lines.insert(place, fact)
        context = "\n".join(lines)
    return _ask(needles, context, queries, answers)


def _draw(needles: Needles, draw: Random) -> tuple[list[str], list[str], list[str]]:
    """The needles as sentences, the keys that are asked for, and their values."""
    pairs = [
        (_thing(needles.keys, draw), [_thing(needles.values, draw) for _ in range(needles.num_values)])
        for _ in range(max(needles.num_keys, needles.num_queries))
    ]
    facts = [NEEDLE.format(kind=needles.values, key=key, value=value) for key, values in pairs for value in values]
    asked = draw.sample(pairs, needles.num_queries)
    return facts, [key for key, _ in asked], [value for _, values in asked for value in values]


def _thing(kind: Thing, draw: Random) -> str:
    match kind:
        case "numbers":
            return str(draw.randint(1_000_000, 9_999_999))
        case "uuids":
            return str(uuid.UUID(int=draw.getrandbits(128), version=4))
        case "words":
            return f"{draw.choice(adjectives())}-{draw.choice(nouns())}"


def _filling(needles: Needles, draw: Random) -> str:
    if needles.haystack == "noise":
        return NOISE
    return NEEDLE.format(kind=needles.values, key=_thing(needles.keys, draw), value=_thing(needles.values, draw))


def _in_prose(text: str, facts: list[str], draw: Random) -> str:
    cut = sentences(text)
    places = sorted(len(cut) * depth // 100 for depth in draw.sample(DEPTHS, len(facts)))
    parts, last = [], 0
    for place, fact in zip(places, facts, strict=True):
        parts += [" ".join(cut[last:place]), fact]
        last = place
    return " ".join([*parts, " ".join(cut[last:])])


def _ask(needles: Needles, context: str, queries: list[str], answers: list[str]) -> Text:
    template, prefix, kind = TEMPLATE, PREFIX, str(needles.values)
    if len(answers) == 1:
        for plural, singular in SINGULAR:
            template, prefix = template.replace(plural, singular), prefix.replace(plural, singular)
        kind = kind[:-1]
    query = f"{', '.join(queries[:-1])}, and {queries[-1]}" if len(queries) > 1 else queries[0]
    return Text(
        prompt=template.format(kind=kind, context=context, query=query),
        prefix=prefix.format(kind=kind, query=query),
        answers=tuple(answers),
    )


def _step(needles: Needles, length: int) -> int:
    if needles.haystack == "essay":
        return 500
    return 5 if length < 4096 else 25
