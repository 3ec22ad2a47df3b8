"""Conditions and questions for tests of who decides: a plan, a window, a curve by hand."""

from __future__ import annotations

from lychee_server.policy.decide import Conditions, Question
from lychee_server.policy.lengths import Length
from lychee_server.policy.recall import RecallKeeper
from lychee_server.policy.schema import RecallHold
from lychee_server.schemas import LycheeRequest, PlanDefaults

WINDOW = 100_000


class Times:
    """A curve by hand: 10 ms and 1 ms for each 100 tokens of budget; dense as a budget of the whole context."""

    budgets = (256, 1024, 4096)

    def itl_ms(self, budget, context, batch):
        if context > 50_000:
            return None
        return batch * (10 + min(context if budget == "dense" else budget, context) / 100)


def conditions(policy=None, **changes):
    base = {
        "policy": policy,
        "defaults": PlanDefaults(budget=1024, mode="topk"),
        "context_window": WINDOW,
        "served": "tiny",
        "recalls": RecallKeeper(RecallHold()),
        "times": Times(),
        "batch": 1,
        "pressure": 0.0,
    }
    return Conditions(**{**base, **changes})


def question(asked=None, tokens=8000, **changes):
    base = {"route": "chat", "streaming": False, "model": "tiny", "reasoning_effort": None, "tier": None}
    length = changes.pop("length", Length.exactly(tokens))
    return Question(asked=LycheeRequest(**(asked or {})), length=length, **{**base, **changes})
