"""English words, from the package wonderwords that RULER takes them from too."""

from __future__ import annotations

from functools import cache
from importlib import resources
from random import Random

from lychee_sgl.eval.errors import EvalError


@cache
def _list(name: str) -> tuple[str, ...]:
    try:
        text = (resources.files("wonderwords.assets") / f"{name}list.txt").read_text(encoding="utf-8")
    except ModuleNotFoundError as error:
        raise EvalError("the package wonderwords is missing: pip install 'lychee-sgl[eval]'") from error
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def nouns() -> tuple[str, ...]:
    """All nouns."""
    return _list("noun")


def adjectives() -> tuple[str, ...]:
    """All adjectives."""
    return _list("adjective")


@cache
def shuffled(seed: int) -> tuple[str, ...]:
    """Nouns, adjectives and verbs, each word once, in an order that follows from the seed."""
    words = sorted({*nouns(), *adjectives(), *_list("verb")})
    Random(seed).shuffle(words)
    return tuple(words)
