"""Talks to an engine's `/generate`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import httpx

from lychee_sgl.bench.near_ties import TOP, alternatives

if TYPE_CHECKING:
    from collections.abc import Mapping


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
            best=alternatives(meta),
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

    @cached_property
    def narrow_pool(self) -> bool:
        """Whether the pool has fewer bits than the model computes with."""
        return str(self.http.get("/server_info").raise_for_status().json()["kv_cache_dtype"]).startswith("fp8")

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
