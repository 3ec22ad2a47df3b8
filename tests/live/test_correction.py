"""Cache correction in a real engine: dense stays dense, costs are told, and nothing is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prompts import passage

from lychee_sgl.bench.near_ties import near_tie

if TYPE_CHECKING:
    from client import Client

pytestmark = pytest.mark.engine

ENTRIES = 30 * 3
PROMPT, TOKENS, EVERY = 500, 40, 8
NEAR_TIE = 0.5


def call(budget: object, every: int, seed: int = 51) -> dict[str, Any]:
    return {
        "prompt": passage(PROMPT, seed=seed),
        "budget": budget,
        "tokens": TOKENS,
        "lychee": {"cache_correction": every},
    }


def corrections(steps: list[list[Any]]) -> list[tuple[int, int, int]]:
    """The steps before which tokens were run again: context, tokens, entries read for it."""
    return [(step[4], step[7], step[8]) for step in steps if len(step) > 7]


EXPECTED = [(end + 1, EVERY, end * ENTRIES) for end in range(PROMPT + EVERY, PROMPT + TOKENS - 1, EVERY)]
"""Before the step whose context has one token more than has been run again."""


def test_dense_with_correction_is_dense(lychee: Client) -> None:
    lychee.flush()
    plain, corrected = (lychee.generate(**call("dense", every)) for every in (0, EVERY))
    tie = near_tie(plain, corrected, NEAR_TIE)
    assert tie is None or tie[0], tie
    assert corrections(plain.steps) == []
    assert corrections(corrected.steps) == EXPECTED
    read = sum(entries for _, _, entries in EXPECTED)
    assert sum(s[0] for s in corrected.steps) == sum(s[1] for s in corrected.steps) + read
    assert all(step[9] > 0 for step in corrected.steps if len(step) > 7)


def test_corrected_and_uncorrected_rows_of_one_batch_do_not_see_each_other(lychee: Client) -> None:
    asked = [(200, EVERY), (200, 0), ("dense", EVERY), (100, 5), ("dense", 0), (200, 1)]
    calls = [call(budget, every, seed=60 + i) for i, (budget, every) in enumerate(asked)]
    lychee.flush()
    alone = [lychee.generate(**each) for each in calls]
    together = lychee.together(calls)
    ties = [near_tie(a, b, NEAR_TIE) for a, b in zip(alone, together, strict=True)]
    assert all(tie is None or tie[0] for tie in ties), ties
    for (_, every), one, other in zip(asked, alone, together, strict=True):
        assert corrections(one.steps) == corrections(other.steps)
        assert len(corrections(one.steps)) == (0 if not every else (TOKENS - 2) // every)


def test_what_was_decoded_is_not_shared_and_all_of_it_is_given_back(lychee: Client) -> None:
    lychee.flush()
    sparse = lychee.generate(**call(200, EVERY))
    after = lychee.generate(passage(PROMPT, seed=51) + sparse.tokens, budget="dense", tokens=2)
    assert after.cached == lychee.whole_pages(PROMPT)
    body = {
        "input_ids": passage(PROMPT, seed=52),
        "stream": True,
        "sampling_params": {"max_new_tokens": 400, "custom_params": {"lychee_cache_correction": 3}},
    }
    with httpx.stream("POST", f"{lychee.address}/generate", json=body, timeout=600) as response:
        lines = response.iter_lines()
        for _ in range(40):  # in the middle of its corrections
            next(lines)
    assert len(lychee.generate([1, 2, 3], tokens=2).tokens) == 2
    lychee.flush()  # waits for what still runs
    assert lychee.metric("sglang:num_used_tokens") == 0
