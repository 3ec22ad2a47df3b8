"""Compares greedy answers up to near ties: floating-point sums in another order may turn a choice that is nearly even.

An engine differs from itself when it adds up in another order: in another batch, after another chunk, on other ranks.
How far is its *noise*; a first difference between two answers is a near tie when the gap between the two tokens is
below it.
"""

from __future__ import annotations

from typing import Any, Protocol

TOP = 8
"""Alternatives asked for at each token; a first difference must lie among them."""


class Greedy(Protocol):
    """A greedy answer: its tokens, and the log-probabilities of the best alternatives at each."""

    @property
    def tokens(self) -> list[int]:
        """The tokens."""

    @property
    def best(self) -> list[dict[int, float]]:
        """For each token the alternatives, the best first."""


def alternatives(meta_info: dict[str, Any]) -> list[dict[int, float]]:
    """Reads the alternatives of every token out of SGLang's `meta_info`."""
    return [{token: logprob for logprob, token, _ in row} for row in meta_info["output_top_logprobs"]]


def first_difference(one: Greedy, other: Greedy) -> int | None:
    """Finds the first token at which two answers differ."""
    for i, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=True)):
        if a != b:
            return i
    return None


def noise(one: Greedy, other: Greedy) -> float:
    """Measures how far an engine is from itself: the largest change of a gap between two alternatives, in logits.

    Counts the tokens before the first difference and the one where it happens: up to there both saw the same context.
    """
    end = first_difference(one, other)
    rows = len(one.tokens) if end is None else end + 1
    largest = 0.0
    for a, b in zip(one.best[:rows], other.best[:rows], strict=True):
        shared = sorted(a.keys() & b.keys(), key=lambda token: -a[token])
        for token in shared[1:]:
            largest = max(largest, abs((a[shared[0]] - a[token]) - (b[shared[0]] - b[token])))
    return largest


def near_tie(stock: Greedy, other: Greedy, allowed: float) -> tuple[bool, float] | None:
    """Judges the first difference of `other` from `stock`.

    Returns:
        None if there is none; else whether it is a near tie, and the gap between the two tokens' logits in stock.
    """
    at = first_difference(stock, other)
    if at is None:
        return None
    row = stock.best[at]
    gap = row[stock.tokens[at]] - row.get(other.tokens[at], -float("inf"))
    return gap < allowed, gap
