"""What an answer says of itself, added up by hand."""

import pytest

from lychee_kernels.decode_plan.api import Fallback
from lychee_kernels.layout import Mode
from lychee_server.catalogue import FALLBACK_REASONS
from lychee_sgl.backend.request import DENSE, RowSpec
from lychee_sgl.backend.rows import FALLBACK_NAMES
from lychee_sgl.backend.summary import Step, Times, summarise

SPARSE = RowSpec(mode=Mode.TOPK, budget=10, value=0.0, sinks=1, recent=1)


def step(
    attended: int, fallback: int = 0, budget: int = 10, recall: float | None = None, batch: int = 1
) -> tuple[object, ...]:
    return tuple(Step(attended, 100, fallback, budget, 25, recall, batch))


def test_increments_are_added_and_the_prefills_token_counts_in_nothing() -> None:
    got = summarise(
        [[None, step(40, recall=0.9), step(50, batch=2), step(30, recall=0.7)]], SPARSE, 29, Times(0.25, 1.5, 2.5)
    )
    assert got == {
        "budget": 10,
        "mode": "topk",
        "value": None,
        "context_tokens": 29,
        "attended_tokens": 120,
        "dense_tokens": 300,
        "decode_steps": 3,
        "sparse_steps": 3,
        "attended_fraction": 0.4,
        "recall": 0.8,
        "recall_steps": 2,
        "dense_fallback": None,
        "mean_batch": pytest.approx(4 / 3),
        "queue_seconds": 0.25,
        "decode_seconds": 1.5,
        "engine_seconds": 2.5,
    }


def test_fallbacks_are_dense_steps_and_the_last_reason_is_named() -> None:
    steps = [None, step(100, Fallback.DENSE_BELOW), step(100, Fallback.BUDGET_COVERS_CONTEXT), step(60)]
    got = summarise([steps], SPARSE, 29, Times())
    assert (got["decode_steps"], got["sparse_steps"], got["dense_fallback"]) == (3, 1, "budget_covers_context")


def test_a_dense_request_has_no_mode_and_no_fallback() -> None:
    spec = RowSpec(mode=Mode.TOPK, budget=DENSE, value=0.0, sinks=1, recent=1)
    got = summarise([[None, step(100, budget=DENSE)]], spec, 29, Times())
    assert (got["budget"], got["mode"], got["sparse_steps"], got["dense_fallback"]) == ("dense", None, 0, None)


def test_without_a_decode_step_there_is_no_fraction() -> None:
    got = summarise([[None]], SPARSE, 29, Times())
    assert (got["attended_fraction"], got["recall"], got["decode_steps"]) == (None, None, 0)


def test_a_mode_without_a_bound_has_no_budget() -> None:
    spec = RowSpec(mode=Mode.TOP_P, budget=0, value=0.9, sinks=1, recent=1)
    got = summarise([[None, step(70)]], spec, 29, Times())
    assert (got["budget"], got["mode"], got["value"]) == (None, "top_p", 0.9)


def test_choices_are_added_together() -> None:
    got = summarise([[None, step(40, recall=0.5)], [None, step(60, recall=1.0), step(60)]], SPARSE, 29, Times())
    assert (got["attended_tokens"], got["decode_steps"], got["recall"]) == (160, 3, 0.75)


def test_times_of_two_choices() -> None:
    """The first was prefilled at 12 s and done at 15 s, the second at 12.5 s and 16 s; a third was one token."""
    first = {"request_received_ts": 10.0, "queue_time": 0.5, "prefill_finished_time": 12.0, "completion_tokens": 4}
    metas = [
        {**first, "request_finished_ts": 15.0},
        {**first, "prefill_finished_time": 12.5, "request_finished_ts": 16.0},
        {**first, "request_finished_ts": 13.0, "completion_tokens": 1},
    ]
    assert Times.of(metas) == (0.5, 3.0 + 3.5, 6.0)


def test_times_are_unknown_without_metrics() -> None:
    assert Times.of([{"completion_tokens": 4}]) == (None, None, None)


def test_the_gateway_counts_every_fallback_under_its_own_name() -> None:
    assert tuple(FALLBACK_NAMES.values()) == FALLBACK_REASONS
