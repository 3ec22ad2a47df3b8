"""Dense means stock's tokens, budgets mean what they say, and rows of a batch do not see each other."""

from __future__ import annotations

import logging
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
from prompts import passage

from lychee_sgl.bench.near_ties import first_difference, near_tie, noise
from lychee_sgl.heads.plan import HeadPlan

if TYPE_CHECKING:
    from client import Answer, Client

pytestmark = pytest.mark.engine

logger = logging.getLogger(__name__)

LENGTHS = [3, 5, 9, 17, 33, 48, 64, 80, 97, 111, 128, 150, 177, 200, 233, 256, 301, 350, 420, 512]
CHURN = 500 if torch.cuda.is_available() else 200
BUDGETS = ["dense", 2048, 512, 256]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [passage(length, seed=length) for length in LENGTHS]


@pytest.fixture(scope="module")
def stock_answers(stock: Client, prompts: list[list[int]]) -> tuple[list[Answer], float]:
    """Stock's answers, and how far stock is from itself when a prompt is chunked or batched otherwise."""
    alone, largest = [], 0.0
    for i, prompt in enumerate(prompts):
        stock.flush()
        alone.append(stock.generate(prompt))
        if i % 5 == 4:  # a few are enough to see the noise; each costs seconds
            stock.flush()
            stock.generate(prompt[: len(prompt) // 2 + 1], tokens=1)
            largest = max(largest, noise(alone[-1], stock.generate(prompt)))
    stock.flush()
    batched = stock.together([{"prompt": prompt} for prompt in prompts[::4]])
    return alone, max(largest, *(noise(a, b) for a, b in zip(alone[::4], batched, strict=True)))


@pytest.mark.parametrize("budget", ["dense", 8192], ids=str)
def test_dense_and_a_budget_beyond_the_context_give_stocks_tokens(
    lychee: Client, prompts: list[list[int]], stock_answers: tuple[list[Answer], float], budget: object, record_property
) -> None:
    answers, allowed = stock_answers
    lychee.flush()
    ours = [lychee.generate(prompt, budget=budget) for prompt in prompts]
    judged = [near_tie(a, b, allowed) for a, b in zip(answers, ours, strict=True)]
    ties = [j for j in judged if j is not None]
    record_property("near_ties", len(ties))
    record_property("stock_noise", allowed)
    logger.info(
        "budget %s: %d near ties of %d, gaps %s, noise of stock %.3f", budget, len(ties), len(prompts), ties, allowed
    )
    assert all(is_tie for is_tie, _ in ties), (ties, allowed)
    assert all(answer.attended_fraction == 1 for answer in ours)


def expected_fraction(plan: HeadPlan, prompt: int, tokens: int, budget: object) -> float:
    """Counts, step by step, what retrieval and sparse heads read."""
    retrieval, heads = plan.retrieval_count, plan.head_count
    read = total = 0
    for n in range(prompt + 1, prompt + tokens):
        size = n if budget == "dense" else min(int(str(budget)), n)
        read += retrieval * n + (heads - retrieval) * size
        total += heads * n
    return read / total


@pytest.fixture(scope="module")
def plan(environ: dict[str, str]) -> HeadPlan:
    return HeadPlan.load(environ["LYCHEE_HEADS"])


def check_batch(
    calls: list[dict[str, Any]], alone: list[Answer], together: list[Answer], plan: HeadPlan, allowed: float
) -> None:
    """The rows of a batch are what they are alone, near ties apart, and read what their budgets say."""
    ties = [near_tie(a, b, allowed) for a, b in zip(alone, together, strict=True)]
    logger.info("mixed batch: first differences %s", ties)
    assert all(tie is None or tie[0] for tie in ties), (ties, allowed)
    for call, answers in zip(calls, zip(alone, together, strict=True), strict=True):
        for answer in answers:
            expected = expected_fraction(plan, len(call["prompt"]), call["tokens"], call["budget"])
            assert answer.attended_fraction == pytest.approx(expected, rel=1e-12)
            recalls = [step[5] for step in answer.steps]
            if call["budget"] != "dense":
                assert [at for at, recall in enumerate(recalls) if recall is not None] == list(range(0, 23, 4))
                assert all(0 < recall <= 1 + 1e-9 for recall in recalls if recall is not None)


def test_one_batch_with_four_budgets_before_and_after_hundreds_of_other_requests(
    lychee: Client, plan: HeadPlan, stock_answers: tuple[list[Answer], float]
) -> None:
    allowed = stock_answers[1]
    calls = [
        {"prompt": passage(2600 + 37 * i, seed=900 + i), "budget": budget, "tokens": 24}
        for i, budget in enumerate(BUDGETS)
    ]
    lychee.flush()
    alone = [lychee.generate(**call) for call in calls]
    check_batch(calls, alone, lychee.together(calls), plan, allowed)
    churn(lychee, CHURN)
    lychee.flush()
    check_batch(calls, alone, lychee.together(calls), plan, allowed)


def churn(lychee: Client, count: int) -> None:
    """Sends requests that share prefixes, with random budgets, and breaks off a quarter of them."""
    rng = random.Random(7)
    shared = [passage(150, seed=i) for i in range(4)]

    def one(i: int) -> str:
        prompt = rng.choice(shared) + passage(rng.randrange(1, 60), seed=1000 + i)
        budget = rng.choice(["dense", "auto", 1, 7, 40, 100, 180, 8192])
        body = {
            "input_ids": prompt,
            "sampling_params": {"max_new_tokens": rng.randrange(1, 12), "custom_params": {"lychee_budget": budget}},
        }
        if i % 4:
            httpx.post(f"{lychee.address}/generate", json=body, timeout=600).raise_for_status()
            return "answered"
        body["stream"] = True
        with httpx.stream("POST", f"{lychee.address}/generate", json=body, timeout=600) as response:
            next(response.iter_lines())
            return "broken off"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(one, range(count)))
    assert len(outcomes) == count


def test_the_radix_cache_holds_dense_kv_only(lychee: Client) -> None:
    prompt = passage(400, seed=77)
    lychee.flush()
    sparse = lychee.generate(prompt, budget=100, tokens=40)
    follow_up = prompt + sparse.tokens
    after_sparse = lychee.generate(follow_up, budget="dense", tokens=2)
    assert after_sparse.cached == lychee.whole_pages(len(prompt))
    lychee.flush()
    dense = lychee.generate(prompt, budget="dense", tokens=40)
    after_dense = lychee.generate(prompt + dense.tokens, budget=100, tokens=2)
    assert after_dense.cached >= lychee.whole_pages(len(prompt) + 31)


def test_a_request_for_one_token_leaves_its_prompt_in_the_cache(lychee: Client) -> None:
    prompt = passage(300, seed=79)
    lychee.flush()
    lychee.generate(prompt, budget=100, tokens=1)
    assert lychee.generate(prompt, budget=100, tokens=3).cached == lychee.whole_pages(len(prompt) - 1)


def test_an_answer_that_ends_with_its_first_token_leaves_its_prompt_in_the_cache(lychee: Client) -> None:
    prompt = passage(320, seed=80)
    lychee.flush()
    first = lychee.generate(prompt, budget=100, tokens=2).tokens[0]
    lychee.flush()
    stopped = lychee.generate(prompt, budget=100, tokens=20, ignore_eos=False, stop_token_ids=[first])
    assert stopped.tokens == [first]
    assert lychee.generate(prompt, budget=100, tokens=3).cached == lychee.whole_pages(len(prompt) - 1)


def test_dense_after_sparse_equals_dense_on_an_empty_cache(
    lychee: Client, stock_answers: tuple[list[Answer], float]
) -> None:
    prompt = passage(700, seed=78)
    lychee.flush()
    first = lychee.generate(prompt, budget="dense")
    lychee.flush()
    lychee.generate(prompt, budget=64)
    second = lychee.generate(prompt, budget="dense")
    assert second.cached == lychee.whole_pages(len(prompt) - 1)
    # The last prompt token alone is computed again: the same numbers but for the order of sums. A pool of fewer bits
    # than the prefill loses those, too: stock's own answers change as much, and say how much that is.
    allowed = max(0.25, stock_answers[1]) if lychee.narrow_pool else 0.25
    assert first_difference(first, second) is None or near_tie(first, second, allowed)[0]


def test_everything_is_given_back(lychee: Client) -> None:
    lychee.flush()
    assert lychee.metric("sglang:num_running_reqs") == 0
    assert lychee.metric("sglang:num_used_tokens") == 0


def test_anthropics_protocol_on_top_of_chats_is_answered(lychee: Client) -> None:
    body = {"model": "any", "max_tokens": 4, "messages": [{"role": "user", "content": "Say hello."}]}
    response = lychee.http.post("/v1/messages", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["type"] == "message"
    assert response.json()["content"][0]["text"]


@pytest.mark.parametrize(
    "params",
    [{"lychee_budget": -1}, {"lychee_mode": "best"}, {"lychee_mode": ["topk"]}, {"lychee_budgets": 3}],
    ids=str,
)
def test_the_engine_itself_refuses_nonsense_and_lives_on(lychee: Client, params: dict[str, object]) -> None:
    body = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 2, "custom_params": params}}
    response = lychee.http.post("/generate", json=body)
    assert response.status_code == 400
    assert next(iter(params)) in response.text
    assert len(lychee.generate([1, 2, 3], tokens=2).tokens) == 2
