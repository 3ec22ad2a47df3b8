"""The aggregation tasks: common words (`cwe`) and frequent coded words (`fwe`)."""

from __future__ import annotations

import math
import string
from random import Random
from typing import Final

from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.fit import Counter, Recipe, Request
from lychee_sgl.eval.ruler.vocabulary import shuffled
from lychee_sgl.eval.sample import Text

COMMON_TEMPLATE: Final = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
COMMON_PREFIX: Final = " Answer: The top 10 words that appear most often in the list are:"
COMMON_WORDS: Final = 10
COMMON_STEP: Final = 10

FREQUENT_TEMPLATE: Final = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
FREQUENT_PREFIX: Final = " Answer: According to the coded text above, the three most frequently appeared words are:"
FREQUENT_TOKENS: Final = 50
LETTERS: Final = 6
ALPHA: Final = 2.0
ZETA_OF_ALPHA: Final = math.pi**2 / 6


def common_words_recipe() -> Recipe:
    """`cwe`: ten words many times, the others a few times, as a numbered list, with a worked example in front."""
    return Recipe(
        name="cwe",
        summary="the ten most common words of a list",
        metric="match_all",
        max_tokens=120,
        build=_common,
        step=lambda length: COMMON_STEP,
        most=lambda: len(shuffled(0)),
    )


def _common(request: Request) -> Text:
    short = request.length < 4096
    shown, right = _listed(request, 20, 3, 1) if short else _listed(request, 40, 10, 3)
    asked, answers = _listed(request, request.size, 6, 1) if short else _listed(request, request.size, 30, 3)
    example = f"{COMMON_TEMPLATE.format(context=shown)}{COMMON_PREFIX} {_numbered(right)}"
    return Text(
        prompt=f"{example}\n{COMMON_TEMPLATE.format(context=asked)}", prefix=COMMON_PREFIX, answers=tuple(answers)
    )


def _listed(request: Request, count: int, often: int, seldom: int) -> tuple[str, list[str]]:
    drawn = request.draw.sample(shuffled(request.seed), count)
    common, others = drawn[:COMMON_WORDS], drawn[COMMON_WORDS:]
    listed = common * often + others * seldom
    Random(request.seed).shuffle(listed)
    return _numbered(listed), common


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def frequent_words_recipe() -> Recipe:
    """`fwe`: invented words with the frequencies of a zeta distribution; the most frequent of all is made dots."""
    return Recipe(
        name="fwe",
        summary="the three most frequent words of a coded text",
        metric="match_all",
        max_tokens=FREQUENT_TOKENS,
        build=_frequent,
        step=lambda length: (length - FREQUENT_TOKENS) // 32,
        choose=_grow,
    )


def _grow(recipe: Recipe, length: int, seed: int, tokens: Counter) -> int:
    """The definition's own search: words are added in steps until the text is too long."""
    step = recipe.step(length)
    if step < 1 or (length - FREQUENT_TOKENS) // 50 < 5:
        raise EvalError(f"fwe at a length of {length}: allowed are lengths from 300 on")
    size = (length - FREQUENT_TOKENS) // LETTERS
    while recipe.make(size, length, -1, seed, tokens)[1] < length:
        size += step
    return max(step, size - step)


def _frequent(request: Request) -> Text:
    wanted = (request.length - FREQUENT_TOKENS) // 50
    words: set[str] = set()
    while len(words) < wanted:
        words.add("".join(request.draw.choices(string.ascii_lowercase, k=LETTERS)))
    ranked = sorted(words)
    Random(request.seed).shuffle(ranked)
    ranked[0] = "..."
    counts = [int(request.size * rank**-ALPHA / ZETA_OF_ALPHA) for rank in range(1, len(ranked) + 1)]
    text = [word for word, count in zip(ranked, counts, strict=True) for _ in range(count)]
    Random(request.seed).shuffle(text)
    return Text(
        prompt=FREQUENT_TEMPLATE.format(context=" ".join(text)), prefix=FREQUENT_PREFIX, answers=tuple(ranked[1:4])
    )
