"""From a request and the policy to a budget, step by step. Pure, but for the keeper's own bookkeeping."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from lychee_server.policy.pressure import shrunk
from lychee_server.policy.schema import Bounds, Outcome, Policy, Tier
from lychee_server.policy.speed import fastest_within
from lychee_server.schemas import LycheeRequest, PlanDefaults, Reason

if TYPE_CHECKING:
    from lychee_server.policy.lengths import Length
    from lychee_server.policy.recall import Holding
    from lychee_server.policy.schema import Rule
    from lychee_server.policy.speed import Times

Route = Literal["chat", "completions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a decision depends on, of the request.

    Attributes:
        asked: the checked request field `lychee`.
        route: where it came in.
        streaming: whether the answer is streamed.
        model: the request's `model`.
        reasoning_effort: the request's.
        tier: the caller's; None: no tier.
        length: of the prompt.
    """

    asked: LycheeRequest
    route: Route
    streaming: bool
    model: str | None
    reasoning_effort: str | None
    tier: str | None
    length: Length

    def at(self, length: Length) -> Question:
        """Return the same question for a prompt of another length."""
        return replace(self, length=length)


class Recalls(Protocol):
    """Where budgets for a recall come from; see `RecallKeeper`."""

    def hold(self, served: str, prompt_tokens: int, recall: float, *, dry: bool = False) -> Holding:
        """Budget for a recall."""

    def expected_context(self, served: str, prompt_tokens: int) -> int:
        """Context in the middle of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a decision depends on, of everything else.

    Attributes:
        policy: None: no policy file.
        defaults: the head plan's.
        context_window: the engine's, in tokens.
        served: model and head plan, as one name: what recall depends on.
        recalls: budgets for a recall.
        times: the measured speed curve; None: there is none.
        batch: requests that decode beside this one, itself included.
        pressure: level in [0, 1].
        dry: nothing that is held may move: somebody only wants to know.
    """

    policy: Policy | None
    defaults: PlanDefaults
    context_window: int
    served: str
    recalls: Recalls
    times: Times | None
    batch: int
    pressure: float
    dry: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a decision, for people to read."""

    step: Literal["request", "tier", "rule", "default", "plan", "outcome", "bounds", "pressure"]
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a request gets.

    Attributes:
        sent: what the engine is asked for; nothing where its own default holds.
        expected: what that comes to, as far as the prompt's length is known.
        reason: what has decided, or has changed it last.
        rule: name of the rule that gave it.
        tier: the caller's.
        steps: how it came about.
    """

    sent: LycheeRequest
    expected: LycheeRequest
    reason: Reason
    rule: str | None = None
    tier: str | None = None
    steps: tuple[Step, ...] = ()

    def beside(self, asked: LycheeRequest) -> Decision:
        """Return the decision with what the request asks for beside a budget."""
        return replace(self, sent=self.sent.model_copy(update=asked.besides()))


def request_reason(asked: LycheeRequest) -> Reason:
    """Say where a budget comes from, as far as the request alone tells."""
    if asked.min_recall is not None:
        return "min_recall"
    if asked.target_itl_ms is not None:
        return "target_itl"
    if asked.budget == "auto":
        return "auto"
    return "default" if asked == LycheeRequest() else "request"


def plain(asked: LycheeRequest) -> Decision:
    """Return the decision for an engine without the plug-in, on which nobody has a say."""
    sent = LycheeRequest(budget=asked.budget, mode=asked.mode, value=asked.value)
    steps = (Step(step="plan", says="the engine runs without the lychee plug-in: every answer is dense"),)
    return Decision(sent=sent, expected=sent, reason=request_reason(asked), steps=steps)


def matching_rule(policy: Policy, question: Question, tokens: int) -> Rule | None:
    """Return the first rule that holds for a request whose prompt has so many tokens."""
    return next((rule for rule in policy.rules if _matches(rule, question, tokens)), None)


def _matches(rule: Rule, question: Question, tokens: int) -> bool:
    when = rule.when
    return (
        (when.prompt_tokens is None or when.prompt_tokens.contains(tokens))
        and when.matches_model(question.model)
        and when.matches_effort(question.reasoning_effort)
        and when.route in (None, question.route)
        and when.streaming in (None, question.streaming)
        and (when.tier is None or question.tier in when.tier)
    )


def depends_on_length(policy: Policy | None, question: Question) -> bool:
    """Whether the estimate of the prompt's length is too rough to say which rule holds."""
    if policy is None or question.length.exact or _given_tier(policy, question).gives or not is_open(question.asked):
        return False
    length = question.length
    # A border inside the range changes the rule between two lengths: look at every length where that can happen.
    borders = {length.low, length.high}
    for rule in policy.rules:
        limits = rule.when.prompt_tokens
        if limits is not None:
            near = {limits.min, (limits.max + 1) if limits.max is not None else None} - {None}
            borders |= {border for border in near if border is not None and length.low < border <= length.high}
    found = {matching_rule(policy, question, tokens) for tokens in borders}
    return len({rule.name if rule else None for rule in found}) > 1


def is_open(asked: LycheeRequest) -> bool:
    """Whether a request leaves the budget to the policy: it asks for nothing, or for `auto` alone."""
    return asked in (LycheeRequest(), LycheeRequest(budget="auto"))


def _given_tier(policy: Policy | None, question: Question) -> Tier:
    if policy is None:
        return Tier()
    # A reload may have taken a tier away that a key still names: then the limits of callers without one hold.
    return policy.tiers.get(question.tier or "", policy.tier(None))


def decide(question: Question, conditions: Conditions) -> Decision:
    """Decide a request's budget.

    The order of those who may decide: the request, the caller's tier, the rules, the default, the head plan. What they
    give is brought inside its own limits and inside the tier's; pressure shrinks what the request did not fix itself.
    """
    policy, asked = conditions.policy, question.asked
    tier = _given_tier(policy, question)
    steps: list[Step] = []
    reason, rule, outcome = _who_decides(question, tier, policy, steps)
    if outcome is None:
        form = given = _concrete(asked, conditions.defaults, question.length.tokens)
    else:
        form = given = _resolve(outcome, question, conditions, steps)
    fixed = reason in ("request", "min_recall", "target_itl") and not is_open(asked)
    own = outcome.bounds if outcome is not None else Bounds()
    limits = own.within(tier.bounds)
    form = _bounded(form, own, conditions, question.length.tokens)
    inside = _bounded(form, limits, conditions, question.length.tokens)
    if inside != form:
        steps.append(Step(step="bounds", says=f"the tier allows {_shown_bounds(tier.bounds)}: {shown(inside)}"))
        reason = "tier" if _binds(form, inside, question.length.tokens) else reason
        form = inside
    if policy is not None and policy.pressure is not None and conditions.pressure > 0 and not fixed:
        floor = limits.min or policy.pressure.floor
        pressed = _pressed(form, floor, conditions.pressure, question.length.tokens)
        if pressed != form:
            steps.append(Step(step="pressure", says=f"at level {conditions.pressure:g}: {shown(pressed)}"))
            form, reason = pressed, "pressure"
    # What nobody has changed is left to the engine as it was asked: it knows the prompt's exact length.
    left = outcome is None or outcome.budget == "auto"
    sent, as_asked = form, asked if outcome is None else LycheeRequest(budget="auto")
    if left and form == given and _stays_inside(as_asked, limits, conditions, question.length):
        sent = as_asked
    return Decision(sent=sent, expected=form, reason=reason, rule=rule, tier=question.tier, steps=tuple(steps))


def _who_decides(
    question: Question, tier: Tier, policy: Policy | None, steps: list[Step]
) -> tuple[Reason, str | None, Outcome | None]:
    """Find the outcome that holds, the name of its rule and the reason; no outcome: the head plan, or the request."""
    asked = question.asked
    reason = request_reason(asked)
    if reason == "min_recall":
        outcome = Outcome.model_construct(min_recall=asked.min_recall)
        steps.append(Step(step="request", says=f"asks for a recall of {asked.min_recall:g}"))
        return reason, None, outcome
    if reason == "target_itl":
        steps.append(Step(step="request", says=f"asks for {asked.target_itl_ms:g} ms a token"))
        return reason, None, Outcome.model_construct(target_itl_ms=asked.target_itl_ms)
    if not is_open(asked):
        steps.append(Step(step="request", says=f"asks for {shown(asked)}"))
        return reason, None, None
    steps.append(Step(step="request", says="leaves it to the policy" + (" (auto)" if asked.budget else "")))
    if tier.gives is not None:
        steps.append(Step(step="tier", says=f"{question.tier} gives {_shown_outcome(tier.gives)}"))
        return _reason_of(tier.gives, "tier"), None, tier.gives
    rule = matching_rule(policy, question, question.length.tokens) if policy is not None else None
    if rule is not None:
        steps.append(Step(step="rule", says=f"{rule.name} gives {_shown_outcome(rule.gives)}"))
        return _reason_of(rule.gives, "rule"), rule.name, rule.gives
    if policy is not None and policy.default is not None:
        steps.append(Step(step="default", says=f"the policy's default gives {_shown_outcome(policy.default)}"))
        return _reason_of(policy.default, reason), None, policy.default
    steps.append(Step(step="plan", says="no rule matches and the policy has no default: the head plan decides"))
    return reason, None, None


def _reason_of(outcome: Outcome, giver: Reason) -> Reason:
    if outcome.min_recall is not None:
        return "min_recall"
    return "target_itl" if outcome.target_itl_ms is not None else giver


def _concrete(asked: LycheeRequest, defaults: PlanDefaults, tokens: int) -> LycheeRequest:
    """Return what the engine makes of a request, as far as the prompt's length is known here."""
    budget, mode, value = asked.budget, asked.mode, asked.value
    if asked == LycheeRequest():
        budget, mode, value = defaults.budget, defaults.mode, defaults.value
    elif budget is None and mode == "topk":
        budget = defaults.budget if defaults.mode == "topk" else "auto"
    if budget == "auto":
        budget = defaults.auto.at(tokens)
    return LycheeRequest(budget=budget, mode=None if mode == "topk" else mode, value=value)


def _resolve(outcome: Outcome, question: Question, conditions: Conditions, steps: list[Step]) -> LycheeRequest:
    tokens, defaults = question.length.tokens, conditions.defaults
    found: LycheeRequest
    if outcome.ratio is not None:
        found = LycheeRequest(mode="ratio", value=outcome.ratio)
    elif outcome.range is not None:
        share = outcome.range.share or defaults.auto.fraction
        found = LycheeRequest(budget=Bounds(min=outcome.range.min, max=outcome.range.max).clamp(_part(share, tokens)))
    elif outcome.min_recall is not None:
        held = conditions.recalls.hold(conditions.served, tokens, outcome.min_recall, dry=conditions.dry)
        found = LycheeRequest(budget=held.budget)
        learnt = f"after {held.answers} audited answers to prompts of {held.bucket} tokens"
        says = (
            f"{held.budget} tokens ({held.share:.1%} of the context) for a recall of {outcome.min_recall:g}, {learnt}"
        )
        steps.append(Step(step="outcome", says=says))
    elif outcome.target_itl_ms is not None:
        context = conditions.recalls.expected_context(conditions.served, tokens)
        speed = fastest_within(conditions.times, outcome.target_itl_ms, context, conditions.batch)
        if speed.budget is None:
            found = _concrete(LycheeRequest(), defaults, tokens)
        else:
            found = LycheeRequest(budget=speed.budget)
        steps.append(Step(step="outcome", says=speed.says))
    else:
        budget = defaults.auto.at(tokens) if outcome.budget == "auto" else outcome.budget
        found = LycheeRequest(budget=budget)
    return _fitting(found, conditions.context_window)


def _part(share: float, tokens: int) -> int:
    # The binary rounding of a share never adds a token, as in the engine.
    return max(1, math.ceil(share * tokens - 1e-9))


def _fitting(form: LycheeRequest, context_window: int) -> LycheeRequest:
    if isinstance(form.budget, int) and form.budget > context_window:
        return form.model_copy(update={"budget": context_window})
    return form


def _bounded(form: LycheeRequest, bounds: Bounds, conditions: Conditions, tokens: int) -> LycheeRequest:
    """Bring a budget inside limits, for a prompt of this length.

    Modes that are bounded by something else than a number get the upper limit beside their own bound. A lower one
    raises a ratio; the other two modes have no size that could be raised.
    """
    low, high = bounds.min, bounds.max
    if form.mode is not None and form.value is None:
        return form  # the plan's own mode, whose value this engine does not tell
    changes: dict[str, object] = {}
    if form.budget == "dense":
        changes = {} if high is None else {"budget": high}
    elif form.mode is None:
        changes = {} if form.budget is None else {"budget": bounds.clamp(int(form.budget))}
    else:
        if high is not None:
            changes["budget"] = high if form.budget is None else min(int(form.budget), high)
        if form.mode == "ratio" and low is not None:
            if _part(form.value or 1, tokens) < low:
                changes["value"] = min(1.0, low / max(tokens, 1))
            if form.budget is not None:  # the ratio's own upper bound, which may be the one that is too low
                changes["budget"] = max(int(form.budget), low)
    return _fitting(form.model_copy(update=changes), conditions.context_window)


def _stays_inside(asked: LycheeRequest, limits: Bounds, conditions: Conditions, length: Length) -> bool:
    """Whether what the engine makes of `auto`, for it knows the length, is inside limits whatever the length is."""
    lengths = (length.tokens,) if length.exact else (1, conditions.context_window)
    forms = [_concrete(asked, conditions.defaults, tokens) for tokens in lengths]
    return all(_bounded(form, limits, conditions, length.tokens) == form for form in forms)


def _binds(form: LycheeRequest, inside: LycheeRequest, tokens: int) -> bool:
    """Whether limits change what is read, and are not only written beside a ratio that is inside them by itself."""
    if form.mode != "ratio" or form.value != inside.value or not isinstance(inside.budget, int):
        return True
    return _part(form.value or 1, tokens) > inside.budget


def _pressed(form: LycheeRequest, floor: int, level: float, tokens: int) -> LycheeRequest:
    """Shrink a budget under pressure; dense stays dense: who gives it wants exact answers."""
    if form.budget == "dense":
        return form
    if form.mode is None:
        return (
            form if form.budget is None else form.model_copy(update={"budget": shrunk(int(form.budget), floor, level)})
        )
    if form.mode == "ratio" and form.value is not None:
        size = _part(form.value, tokens)
        held = size if form.budget is None else min(size, int(form.budget))
        return form.model_copy(update={"budget": shrunk(held, floor, level)}) if held > floor else form
    return form if form.budget is None else form.model_copy(update={"budget": shrunk(int(form.budget), floor, level)})


def shown(form: LycheeRequest) -> str:
    """Return a budget in words."""
    parts = [f"{form.mode} {form.value:g}" if form.mode and form.value is not None else form.mode or ""]
    if form.budget is not None:
        parts.append(f"{'at most ' if form.mode else ''}{form.budget}{' tokens' if form.budget != 'dense' else ''}")
    return ", ".join(part for part in parts if part) or "the head plan's default"


def _shown_outcome(outcome: Outcome) -> str:
    given = outcome.model_dump(exclude_none=True)
    spread = given.pop("range", None)
    parts = [f"{key.replace('_', ' ')} {value}" for key, value in given.items()]
    if spread is not None:
        share = f"{spread['share']:g} of the prompt" if "share" in spread else "the head plan's share of the prompt"
        parts = [f"{share}, {spread['min']} to {spread['max']} tokens"]
    return ", ".join(parts)


def _shown_bounds(bounds: Bounds) -> str:
    return f"{bounds.min or 1} to {bounds.max}" if bounds.max else f"{bounds.min} and more"
