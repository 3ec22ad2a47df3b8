"""Is an answer that came under load the one that the same request gets alone? Up to near ties (see `near_ties`)."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from lychee_sgl.bench.near_ties import TOP, alternatives, noise
from lychee_sgl.bench.router_client import alone
from lychee_sgl.bench.router_requests import CHAT, COMPLETIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.bench.router_requests import Asked

SECONDS = 300.0
NOISE_PROMPTS, NOISE_TOKENS = 48, 24
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Greedy:
    """A greedy answer: its tokens, and the log-probabilities of the best alternatives at each."""

    tokens: list[int]
    best: list[dict[int, float]]


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer asked for alone: its text, and the alternatives' log-probabilities, its own among them."""

    text: str
    best: dict[str, float]


def own_noise(address: str, asked: Sequence[Asked]) -> float:
    """Measure how far an engine is from itself: the same prompts one after the other, and many at once.

    Args:
        address: of the engine, stock SGLang.
        asked: requests; their text completions are taken.

    Returns:
        The largest change of a gap between two alternatives, in logits.
    """
    prompts = [each.body["prompt"] for each in asked if each.path == COMPLETIONS][:NOISE_PROMPTS]

    def generate(prompt: str) -> Greedy:
        body = {
            "text": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": NOISE_TOKENS, "ignore_eos": True},
            "return_logprob": True,
            "top_logprobs_num": TOP,
        }
        response = httpx.post(f"{address}/generate", json=body, timeout=SECONDS, trust_env=False).raise_for_status()
        answer = response.json()
        return Greedy(answer["output_ids"], alternatives(answer["meta_info"]))

    one_by_one = [generate(prompt) for prompt in prompts]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        together = list(pool.map(generate, prompts))
    return max(noise(one, other) for one, other in zip(one_by_one, together, strict=True))


def ask_alone(address: str, asked: Asked) -> list[Token]:
    """Ask an engine itself for the answer to a request.

    Raises:
        httpx.HTTPError: it did not answer.
    """
    reply = httpx.post(f"{address}{asked.path}", json=alone(asked, TOP), timeout=SECONDS, trust_env=False)
    return tokens_of(reply.raise_for_status().json(), asked.path)


def tokens_of(answer: dict[str, Any], path: str) -> list[Token]:
    """Read the tokens out of an answer that has its log-probabilities."""
    said = answer["choices"][0]["logprobs"]
    if path == CHAT:
        return [
            Token(row["token"], {each["token"]: each["logprob"] for each in row["top_logprobs"]})
            for row in said["content"]
        ]
    return [Token(text, dict(best)) for text, best in zip(said["tokens"], said["top_logprobs"], strict=True)]


def gap_at_difference(text: str, tokens: Sequence[Token], *, whole: bool = True) -> float | None:
    """Find out where a text leaves a reference, and by how little.

    The same words can be cut into tokens in two ways: the choice that made the difference may be an earlier one, of a
    token that another one begins with.

    Args:
        text: the answer that is judged.
        tokens: the reference.
        whole: the answer was complete; else it may end anywhere.

    Returns:
        None if it does not; else the smallest gap in logits between a token of the reference, up to the first that
        the text does not have, and one that the text may have in its place; infinity where there is none.
    """
    at, gaps = 0, [math.inf]
    for token in tokens:
        if not whole and token.text.startswith(text[at:]):
            return None
        own = token.best.get(token.text, math.inf)
        gaps += [
            own - weight
            for other, weight in token.best.items()
            if other and other != token.text and text.startswith(other, at)
        ]
        if not text.startswith(token.text, at):
            return min(gaps)
        at += len(token.text)
    return None if at == len(text) else min(gaps)
