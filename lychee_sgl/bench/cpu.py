"""Ours against stock SGLang on the CPU: both engines up, asked in turn, the same prompts (DESIGN.md 2.2, README)."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from lychee_sgl.bench.machine import describe, float32_gflops
from lychee_sgl.models.embedded import ensure_unpacked
from lychee_sgl.serve.solo import solo_engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTEXTS = (64, 1000, 2000, 4000, 7000)
BUDGETS: tuple[int | str, ...] = ("dense", 1024, 512)
TOKENS = 33
NEW_PROMPT_TOKENS = 20
"""Tokens behind the cached prefix, as in the next turn of a chat."""
GATE_GAP = 1.0
"""Logits: a first difference between dense and stock that is larger than this is no rounding."""


class GateError(RuntimeError):
    """Dense answers differ from stock's: no speed is worth reporting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One streamed request: seconds to the first token, and between later ones."""

    first: float
    gaps: tuple[float, ...]
    cached: int

    @property
    def per_token(self) -> float:
        """The median time between two tokens, in seconds."""
        return statistics.median(self.gaps)


def _ids(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000, 40_000) for _ in range(count)]


def ask(address: str, prompt: list[int], tokens: int, budget: int | str | None, **extra: object) -> dict[str, Any]:
    """Asks an engine and waits for the whole answer."""
    response = httpx.post(f"{address}/generate", json=_body(prompt, tokens, budget) | extra, timeout=900)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def _body(prompt: list[int], tokens: int, budget: int | str | None) -> dict[str, Any]:
    custom = {} if budget is None else {"custom_params": {"lychee_budget": budget}}
    return {
        "input_ids": prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **custom},
    }


def time_stream(address: str, prompt: list[int], tokens: int, budget: int | str | None) -> Timed:
    """Streams an answer and notes when each token comes."""
    seen, cached, moments = 0, 0, []
    start = time.perf_counter()
    body = _body(prompt, tokens, budget) | {"stream": True}
    with httpx.stream("POST", f"{address}/generate", json=body, timeout=900) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            meta = json.loads(line[6:])["meta_info"]
            now = time.perf_counter()
            # a chunk may bring several tokens: each gets its share of the time since the last
            moments += [now] * (meta["completion_tokens"] - seen)
            seen, cached = meta["completion_tokens"], meta["cached_tokens"]
    whole = (moments[-1] - moments[0]) / (len(moments) - 1) if len(moments) > 1 else 0.0
    gaps = [b - a for a, b in itertools.pairwise(moments) if b > a] or [whole]
    # where tokens came bundled, single gaps say nothing: then the mean
    bundled = len(gaps) < 0.9 * (len(moments) - 1)
    return Timed(first=moments[0] - start, gaps=(whole,) if bundled else tuple(gaps), cached=cached)


def gate(ours: str, stock: str) -> list[dict[str, Any]]:
    """Compares dense with stock on three prompts.

    Raises:
        GateError: a first difference is larger than rounding explains.
    """
    found = []
    for length in (40, 300, 1200):
        prompt = _ids(length, seed=length)
        extra = {"return_logprob": True, "top_logprobs_num": 5}
        a, b = ask(stock, prompt, 32, None, **extra), ask(ours, prompt, 32, "dense", **extra)
        pairs = zip(a["output_ids"], b["output_ids"], strict=True)
        at = next((i for i, (x, y) in enumerate(pairs) if x != y), None)
        gap = None
        if at is not None:
            row = {token: logprob for logprob, token, _ in a["meta_info"]["output_top_logprobs"][at]}
            gap = row[a["output_ids"][at]] - row.get(b["output_ids"][at], -float("inf"))
            if gap > GATE_GAP:
                raise GateError(
                    f"dense differs from stock at token {at} of a {length}-token prompt by {gap:.2f} logits"
                )
        found.append({"prompt_tokens": length, "first_difference": at, "gap_logits": gap})
    return found


def _measure_context(ours: str, stock: str, length: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    prefix = _ids(length - NEW_PROMPT_TOKENS, seed=length)
    fresh = {}
    for name, address in (("stock", stock), ("lychee", ours)):
        say(f"{length} tokens: fresh prefill, {name}")
        fresh[name] = time_stream(address, prefix, 1, None if name == "stock" else "dense").first
    timed: dict[str, list[Timed]] = {name: [] for name in ("stock", *map(str, BUDGETS))}
    for turn in range(rounds):
        prompt = prefix + _ids(NEW_PROMPT_TOKENS, seed=10_000 + turn)
        for name in timed:
            say(f"{length} tokens: round {turn + 1} of {rounds}, {name}")
            budget = None if name == "stock" else int(name) if name.isdigit() else name
            # the second question of a round would find the first one's whole prompt: each has its own last token
            own = [*prompt[:-1], 1000 + len(timed[name]) + 50 * list(timed).index(name)]
            timed[name].append(time_stream(stock if name == "stock" else ours, own, TOKENS, budget))
    return {
        "context_tokens": length,
        "fresh_prefill_seconds": fresh,
        "rounds": {
            name: [
                {"first_token_seconds": t.first, "per_token_seconds": t.per_token, "cached_tokens": t.cached}
                for t in runs
            ]
            for name, runs in timed.items()
        },
        "per_token_seconds": {name: statistics.median(t.per_token for t in runs) for name, runs in timed.items()},
        "first_token_seconds": {name: statistics.median(t.first for t in runs) for name, runs in timed.items()},
    }


def prefill_floor(config: dict[str, Any], tokens: int, gflops: float) -> dict[str, float]:
    """Counts the arithmetic of a fresh prefill and what it takes at this machine's measured float32 speed.

    Args:
        config: the model's `config.json` (Llama architecture).
        tokens: prompt length.
        gflops: measured speed of a float32 matrix product.
    """
    hidden, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    weights = layers * (hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * inner)
    # causal: each token sees half of the prompt on average; q.k and p.v, a multiplication and an addition each
    attention = layers * heads * head_dim * 4 * tokens * tokens / 2
    total = 2.0 * weights * tokens + attention
    return {
        "linear_gflop": 2.0 * weights * tokens / 1e9,
        "attention_gflop": attention / 1e9,
        "seconds": total / gflops / 1e9,
    }


def run(state: Path, rounds: int, contexts: tuple[int, ...], say: Callable[[str], None]) -> dict[str, Any]:
    """Runs the whole comparison.

    Args:
        state: folder for the engines' logs.
        rounds: how often each question is asked, in turn.
        contexts: context lengths, in tokens.
        say: gets a line for each thing begun.

    Returns:
        The record as it is committed.

    Raises:
        GateError: dense answers differ from stock's.
        StartFailed: an engine does not start.
    """
    record: dict[str, Any] = {"kind": "cpu-speed", **describe()}
    config = json.loads((ensure_unpacked(say) / "config.json").read_text())
    gflops = float32_gflops()
    say("starting stock SGLang (torch_native)")
    with solo_engine(state, backend="torch_native") as stock:
        say("starting SGLang with lychee")
        with solo_engine(state, environ={"LYCHEE_DENSE_BELOW": "0"}) as ours:
            record["lychee"] = httpx.get(f"{ours}/lychee/info", timeout=30).json()
            say("gate: dense against stock")
            record["gate"] = gate(ours, stock)
            record["contexts"] = [_measure_context(ours, stock, length, rounds, say) for length in contexts]
    longest = record["contexts"][-1]["context_tokens"]
    record["float32_gflops"] = gflops
    record["prefill_floor"] = {"tokens": longest, **prefill_floor(config, longest, gflops)}
    record["ratios"] = [_ratios(context) for context in record["contexts"]]
    return record


def _ratios(context: dict[str, Any]) -> dict[str, Any]:
    per_token, first = context["per_token_seconds"], context["first_token_seconds"]
    return {
        "context_tokens": context["context_tokens"],
        "per_token": {name: per_token["stock"] / value for name, value in per_token.items() if name != "stock"},
        "first_token_after_hit": {name: first["stock"] / value for name, value in first.items() if name != "stock"},
        "fresh_prefill": context["fresh_prefill_seconds"]["stock"] / context["fresh_prefill_seconds"]["lychee"],
    }
