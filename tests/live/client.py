"""Talks to an engine's `/generate`, and compares greedy answers up to near ties."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Mapping

TOP = 8
"""Alternatives asked for at each token; a first difference must lie among them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy tokens, the log-probabilities of the best alternatives at each, and the engine's steps."""

    tokens: list[int]
    best: list[dict[int, float]]
    steps: list[list[Any]]
    cached: int

    @property
    def attended_fraction(self) -> float:
        return sum(s[0] for s in self.steps) / sum(s[1] for s in self.steps)


class Client:
    """Asks one engine."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.http = httpx.Client(base_url=address, timeout=600)

    def close(self) -> None:
        """Closes the connections."""
        self.http.close()

    def generate(
        self,
        prompt: list[int],
        *,
        tokens: int = 64,
        budget: object = None,
        lychee: Mapping[str, object] | None = None,
        **params: object,
    ) -> Answer:
        ours = {f"lychee_{key}": value for key, value in ({"budget": budget} | dict(lychee or {})).items()}
        asked = {key: value for key, value in ours.items() if value is not None}
        custom = {"custom_params": asked} if asked else {}
        body = {
            "input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **custom, **params},
            "return_logprob": True,
            "top_logprobs_num": TOP,
        }
        response = self.http.post("/generate", json=body)
        response.raise_for_status()
        answer = response.json()
        meta = answer["meta_info"]
        return Answer(
            tokens=answer["output_ids"],
            best=[{token: logprob for logprob, token, _ in row} for row in meta["output_top_logprobs"]],
            steps=[step for step in meta.get("lychee") or [] if step is not None],
            cached=meta["cached_tokens"],
        )

    def together(self, calls: list[dict[str, Any]]) -> list[Answer]:
        """Sends all calls at once."""
        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(lambda call: self.generate(**call), calls))

    @cached_property
    def page_size(self) -> int:
        """Tokens of a page of the pool: the radix cache holds whole ones."""
        return int(self.http.get("/server_info").raise_for_status().json()["page_size"])

    def whole_pages(self, tokens: int) -> int:
        """How many of the first tokens of a text can be cached."""
        return tokens // self.page_size * self.page_size

    def flush(self) -> None:
        """Empties the radix cache."""
        self.http.post("/flush_cache", params={"timeout": 30}).raise_for_status()

    def metric(self, name: str) -> float:
        """Reads one of SGLang's gauges."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def first_difference(one: Answer, other: Answer) -> int | None:
    """Finds the first token at which two answers differ."""
    for i, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=True)):
        if a != b:
            return i
    return None


def noise(one: Answer, other: Answer) -> float:
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


def near_tie(stock: Answer, other: Answer, allowed: float) -> tuple[bool, float] | None:
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
