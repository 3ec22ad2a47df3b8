"""Ranks texts for a query by BM25: sentences that the model may have overlooked, and the baseline's chunks."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from types import ModuleType

_WORD = r"(?u)\w+"


def rank(texts: Sequence[str], query: str, count: int) -> list[int]:
    """Gives the texts that share words with a query, the best first.

    Args:
        texts: what is ranked; how rare a word is counts among these.
        query: words to look for.
        count: most texts to give.

    Returns:
        Indexes of `texts`; texts that share no word are left out.
    """
    bm25s = _bm25s()
    words = bm25s.tokenize([*texts, query], token_pattern=_WORD, stopwords=None, return_ids=False, show_progress=False)
    asked = [sorted(set(words[-1]))]
    if not texts or not asked[0] or not any(words[:-1]):
        return []
    index = bm25s.BM25()
    index.index(words[:-1], show_progress=False)
    found, scores = index.retrieve(asked, k=min(count, len(texts)), show_progress=False)
    return [int(i) for i, score in zip(found[0], scores[0], strict=True) if score > 0]


def best_scores(texts: Sequence[str], queries: Sequence[Collection[str]]) -> list[float]:
    """Gives the BM25 score of the text that ranks first, for each of some queries.

    Args:
        texts: what is searched; how rare a word is counts among these.
        queries: words in small letters, each once.

    Returns:
        A score for each query; 0 where no text shares a word with it.
    """
    bm25s = _bm25s()
    words = bm25s.tokenize([*texts], token_pattern=_WORD, stopwords=None, return_ids=False, show_progress=False)
    if not any(words):
        return [0.0] * len(queries)
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    there = {word for text in words for word in text}
    known = [sorted(there.intersection(query)) for query in queries]
    return [float(index.get_scores(query).max()) if query else 0.0 for query in known]


def _bm25s() -> ModuleType:
    # it starts jax where that is installed, which takes most of a GPU's memory from the engine; numpy does as well here
    with _without("jax") if "bm25s" not in sys.modules else contextlib.nullcontext():
        import bm25s
    # it logs every index that it builds, past the level of the program's own log
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    module: ModuleType = bm25s
    return module


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """Lets the import of a module that is not loaded yet fail, for the time of a block."""
    loaded = name in sys.modules
    if not loaded:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not loaded:
            sys.modules.pop(name, None)
