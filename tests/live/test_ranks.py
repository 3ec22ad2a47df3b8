"""Three tensor-parallel ranks answer as one does, and account for the heads of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from prompts import passage

from lychee_sgl.bench.near_ties import near_tie, noise

if TYPE_CHECKING:
    from client import Client

# on a GPU three ranks are three of them; `lychee-sgl bench gpu --tp` compares ranks there
pytestmark = [pytest.mark.engine, pytest.mark.skipif(torch.cuda.is_available(), reason="needs a CPU's ranks")]

TOKENS = 18
PROMPTS = [passage(600 + 31 * i, seed=40 + i) for i in range(4)]
BUDGETS = ["dense", 400, 128, 48]


def test_ranks_give_one_processs_tokens_and_statistics(lychee: Client, ranks: Client) -> None:
    calls = [
        {"prompt": prompt, "budget": budget, "tokens": TOKENS} for prompt, budget in zip(PROMPTS, BUDGETS, strict=True)
    ]
    one, several = lychee.together(calls), ranks.together(calls)
    # what one process shows for itself when its batch is another
    alone = [lychee.generate(**call) for call in calls[:2]]
    allowed = max(0.25, *(noise(a, b) for a, b in zip(alone, one[:2], strict=True)))
    ties = [near_tie(a, b, allowed) for a, b in zip(one, several, strict=True)]
    assert all(tie is None or tie[0] for tie in ties), (ties, allowed)
    for a, b in zip(one, several, strict=True):
        # attended, dense-equivalent, fallback, budget and context depend on lengths and budgets alone
        assert [step[:5] for step in b.steps] == [step[:5] for step in a.steps]
        assert b.attended_fraction == a.attended_fraction
        audited = [(x[5], y[5]) for x, y in zip(a.steps, b.steps, strict=True) if x[5] is not None or y[5] is not None]
        assert len(audited) == (0 if a is one[0] else 5)
        # one audit is a mean over 72 heads; a near tie in a selection moves it by less than this
        assert all(y == pytest.approx(x, abs=0.02) for x, y in audited[:1])
    assert ranks.metric("sglang:num_running_reqs") == 0


def test_modes_without_a_fixed_size_are_added_up_over_the_ranks(lychee: Client, ranks: Client) -> None:
    call = {"prompt": PROMPTS[3], "tokens": 6, "lychee": {"mode": "top_p", "value": 0.9}}
    one, several = lychee.generate(**call), ranks.generate(**call)
    assert 0 < one.attended_fraction < 1
    assert several.attended_fraction == pytest.approx(one.attended_fraction, rel=0.02)
    assert several.steps[0][5] == pytest.approx(one.steps[0][5], abs=0.01)
