"""GET /v1/sparsity and POST /v1/sparsity/explain: the policy, what is held now, and why a request gets its budget."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from lychee_server import docs
from lychee_server.body import read_json_object
from lychee_server.budget import parse_lychee
from lychee_server.errors import InvalidRequest
from lychee_server.policy.lengths import prompt_text

if TYPE_CHECKING:
    from lychee_server.forward import Gateway
    from lychee_server.policy.decide import Route
    from lychee_server.policy.schema import Policy

router = APIRouter(tags=["sparsity"])

_KEYS = ("request", "route", "tier", "prompt_tokens")


class ExplainedStep(BaseModel):
    """One step of a decision."""

    step: str = Field(description="request, tier, rule, default, plan, outcome, bounds or pressure")
    says: str


class PromptTokens(BaseModel):
    """Length of a prompt: the best estimate and the range that it is in."""

    estimate: int
    low: int
    high: int


class Explanation(BaseModel):
    """What a request would get, and why."""

    budget: int | Literal["dense", "auto"] | None = Field(description="as the engine would be asked; null: no bound")
    mode: str | None
    value: float | None
    reason: str
    rule: str | None
    tier: str | None
    prompt_tokens: PromptTokens
    steps: list[ExplainedStep]


class SparsityState(BaseModel):
    """What decides on budgets now."""

    policy: dict[str, Any] | None = Field(description="the policy file's content; null without one")
    plan: dict[str, Any] | None = Field(description="the engine's head plan; null for an engine without the plug-in")
    defaults: dict[str, Any] | None = Field(description="the plan's defaults")
    pressure: dict[str, float] = Field(description="level in force, and the signals it is made of")
    prompt_lengths: list[dict[str, Any]] = Field(description="bytes per token, as learnt from answers")
    recall: list[dict[str, Any]] = Field(description="by model, plan and prompt length: what is held, what was learnt")


def tier_of(request: Request) -> str | None:
    """Return the name of the caller's tier; None where callers have none."""
    tier: str | None = getattr(getattr(request.state, "caller", None), "tier", None)
    return tier


@router.get("/v1/sparsity", responses=docs.ERROR_RESPONSES)
async def get_sparsity(request: Request) -> SparsityState:
    """Show the budget policy, the head plan, and the budgets that are held for asked recalls."""
    gateway: Gateway = request.app.state.gateway
    sparsity = gateway.engines.require().sparsity
    return SparsityState(
        plan=sparsity.plan.model_dump() if sparsity else None,
        defaults=sparsity.defaults.model_dump() if sparsity else None,
        **gateway.budgets.state(),
    )


@router.post("/v1/sparsity/explain", openapi_extra=docs.EXPLAIN_BODY, responses=docs.REFUSED_RESPONSES)
async def explain(request: Request) -> Explanation:
    """Say what a request would get and why, step by step, without running it."""
    gateway: Gateway = request.app.state.gateway
    engine = gateway.engines.require()
    asked = await read_json_object(request, gateway.settings.max_body_bytes, gateway.settings.body_timeout)
    for key in asked:
        if key not in _KEYS:
            raise InvalidRequest(f"{key:.80} is not known; allowed keys are {', '.join(_KEYS)}", code="unknown_key")
    body = asked.get("request")
    if not isinstance(body, dict):
        raise InvalidRequest("request is not an object; allowed: the body of a completion", param="request")
    decision, length = await gateway.budgets.decide(
        body,
        parse_lychee(body.get("lychee"), context_window=engine.context_window),
        prompt_text(body),
        route=_route(asked.get("route"), body),
        tier=_tier(asked, request, gateway.budgets.policy),
        engine=engine,
        prompt_tokens=_prompt_tokens(asked.get("prompt_tokens"), engine.context_window),
        dry=True,
    )
    return Explanation(
        budget=decision.expected.budget,
        mode=decision.expected.mode or (None if decision.expected.budget in ("dense", None) else "topk"),
        value=decision.expected.value,
        reason=decision.reason,
        rule=decision.rule,
        tier=decision.tier,
        prompt_tokens=PromptTokens(estimate=length.tokens, low=length.low, high=length.high),
        steps=[ExplainedStep(step=step.step, says=step.says) for step in decision.steps],
    )


def _route(given: object, body: dict[str, Any]) -> Route:
    if given is None:
        return "completions" if body.get("prompt") is not None else "chat"
    if given not in ("chat", "completions"):
        raise InvalidRequest(f'route is {json.dumps(given):.80}; allowed: "chat", "completions"', param="route")
    return given


def _tier(asked: dict[str, Any], request: Request, policy: Policy | None) -> str | None:
    """Return the tier that is asked about: the caller's own unless another is named; null names none."""
    if "tier" not in asked:
        return tier_of(request)
    tier = asked["tier"]
    known = policy.tiers if policy else {}
    if tier is not None and (not isinstance(tier, str) or tier not in known):
        allowed = ", ".join(["null", *(f'"{name}"' for name in known)])
        raise InvalidRequest(f"tier is {json.dumps(tier):.80}; allowed: {allowed}", param="tier")
    return tier


def _prompt_tokens(given: object, context_window: int) -> int | None:
    if given is None or (type(given) is int and 1 <= given <= context_window):
        return given
    allowed = f"a whole number from 1 to {context_window} (the context window)"
    raise InvalidRequest(f"prompt_tokens is {json.dumps(given):.80}; allowed: {allowed}", param="prompt_tokens")
