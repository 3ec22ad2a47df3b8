"""The request field `lychee`: check it, hand it to the engine, say afterwards what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from lychee_server.errors import InvalidRequest
from lychee_server.memory import parse_memory
from lychee_server.refusing import refuse, show
from lychee_server.schemas import EngineSummary, LycheeAnswer, LycheeRequest, Mode, SelectionPolicy

if TYPE_CHECKING:
    from lychee_server.policy.decide import Decision
    from lychee_server.schemas import PlanDefaults

MODES: tuple[str, ...] = get_args(Mode)
POLICIES: tuple[str, ...] = get_args(SelectionPolicy)
PARAM_PREFIX = "lychee_"
_KEYS = tuple(LycheeRequest.model_fields)


def parse_lychee(raw: object, *, context_window: int) -> LycheeRequest:
    """Check a body's `lychee` value; null, at any place, means "not given".

    Args:
        raw: the parsed JSON value.
        context_window: largest budget, in tokens.

    Raises:
        InvalidRequest: names the field, the value and what is allowed.
    """
    if raw is None:
        return LycheeRequest()
    if not isinstance(raw, dict):
        raise refuse("lychee", raw, f"an object with the keys {', '.join(_KEYS)}")
    for key in raw:
        if key not in _KEYS:
            message = f"lychee.{show(key, quote=False)} is not known; allowed keys are {', '.join(_KEYS)}"
            raise InvalidRequest(message, param=f"lychee.{show(key, quote=False)}", code="unknown_key")
    budget = _budget(raw.get("budget"), context_window)
    mode = _mode(raw.get("mode"), budget)
    value = _value(raw.get("value"), mode, budget)
    min_recall = _number("min_recall", raw.get("min_recall"), 0.5, 0.999)
    target_itl_ms = _number("target_itl_ms", raw.get("target_itl_ms"), 0.001, 60_000)
    policy = _policy(raw.get("policy"))
    seed = _seed(raw.get("seed"), policy)
    every = _whole("cache_correction", raw.get("cache_correction"), 1024)
    deciding = [key for key in _KEYS if key not in LycheeRequest.BESIDES]
    given = {key: raw[key] for key in deciding if raw.get(key) is not None}
    for outcome in ("min_recall", "target_itl_ms"):
        if outcome in given and len(given) > 1:
            raise refuse(f"lychee.{outcome}", raw[outcome], f"nothing else beside it; given: {', '.join(given)}")
    return LycheeRequest(
        budget=budget,
        mode=mode,
        value=value,
        min_recall=min_recall,
        target_itl_ms=target_itl_ms,
        policy=policy,
        seed=seed,
        cache_correction=every,
        **parse_memory(raw),
    )


def _policy(raw: object) -> SelectionPolicy | None:
    if raw is None:
        return None
    if not isinstance(raw, str) or raw not in POLICIES:
        raise refuse("lychee.policy", raw, ", ".join(f'"{policy}"' for policy in POLICIES))
    return cast("SelectionPolicy", raw)


def _seed(raw: object, policy: str | None) -> int | None:
    if raw is None:
        return None
    if policy != "random":
        raise refuse("lychee.seed", raw, 'no seed without the policy "random"')
    return _whole("seed", raw, 2**31 - 1)


def _whole(key: str, raw: object, most: int) -> int | None:
    if raw is None or (type(raw) is int and 0 <= raw <= most):
        return raw
    raise refuse(f"lychee.{key}", raw, f"an integer from 0 to {most}")


def _number(key: str, raw: object, least: float, most: float) -> float | None:
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not least <= raw <= most:
        raise refuse(f"lychee.{key}", raw, f"a number from {least:g} to {most:g}")
    return float(raw)


def _budget(raw: object, context_window: int) -> int | Literal["dense", "auto"] | None:
    match raw:
        case None | "dense" | "auto":
            return raw
    # bool is an int in Python, and 1e9 in JSON is a float: neither is a number of tokens.
    if type(raw) is int and 1 <= raw <= context_window:
        return raw
    raise refuse("lychee.budget", raw, f'an integer from 1 to {context_window} (the context window), "dense", "auto"')


def _mode(raw: object, budget: object) -> Mode | None:
    if raw is None:
        return None
    if not isinstance(raw, str) or raw not in MODES:
        raise refuse("lychee.mode", raw, ", ".join(f'"{mode}"' for mode in MODES))
    if budget == "dense":
        raise refuse("lychee.mode", raw, 'no mode with the budget "dense", which reads everything')
    return cast("Mode", raw)


def _value(raw: object, mode: str | None, budget: object) -> float | None:
    if raw is None:
        if mode in (None, "topk"):
            return None
        raise refuse("lychee.value", None, f'{_range_of(mode)} (mode "{mode}" needs it)')
    if budget == "dense":
        raise refuse("lychee.value", raw, 'no value with the budget "dense", which reads everything')
    if mode in (None, "topk"):
        raise refuse("lychee.value", raw, 'no value with the mode "topk"' + ("" if mode else ", which is in force"))
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not _in_range(raw, mode):
        raise refuse("lychee.value", raw, f'{_range_of(mode)} (mode "{mode}")')
    return float(raw)


def _in_range(value: float, mode: str | None) -> bool:
    return 0 < value < 1 or (value == 1 and mode != "threshold")


def _range_of(mode: str | None) -> str:
    return "a number above 0 and below 1" if mode == "threshold" else "a number above 0 and up to 1"


def merge_custom_params(raw: object, sent: LycheeRequest) -> dict[str, Any] | None:
    """Return the engine's `custom_params`: the caller's own with ours added, or None for an empty one.

    Args:
        raw: the body's `custom_params`, parsed.
        sent: what the engine is asked for.

    Raises:
        InvalidRequest: not an object, a key that is ours, or a value that is not a scalar (SGLang hands the
            object to its scheduler in a form that holds scalars only).
    """
    if raw is not None and not isinstance(raw, dict):
        raise refuse("custom_params", raw, "an object of strings, numbers, booleans and nulls")
    merged: dict[str, Any] = dict(raw or {})
    for key, value in merged.items():
        field = f"custom_params.{show(key, quote=False)}"
        if key.startswith(PARAM_PREFIX):
            raise InvalidRequest(f'{field} is not for callers; use the field "lychee"', param=field)
        if isinstance(value, dict | list):
            raise refuse(field, value, "a string, a number, a boolean or null")
    given = sent.model_dump(include={"budget", "mode", "value", *sent.BESIDES}, exclude_none=True)
    merged.update({f"{PARAM_PREFIX}{key}": value for key, value in given.items()})
    return merged or None


def answer_of(decision: Decision, summary: EngineSummary) -> LycheeAnswer:
    """Reduce the engine's summary to what clients get, with the final reason.

    `dense_below` takes over when a sparse budget was in force and no decode step ran sparse for that reason. A
    context only grows: if the last dense step was short enough for `dense_below`, all before it were too.
    """
    reason = decision.reason
    all_dense = summary.decode_steps > 0 and summary.sparse_steps == 0
    if all_dense and summary.budget != "dense" and summary.dense_fallback == "dense_below":
        reason = "dense_below"
    return LycheeAnswer(
        budget=summary.budget,
        mode=summary.mode,
        reason=reason,
        rule=decision.rule,
        tier=decision.tier,
        policy=summary.policy,
        cache_correction=summary.cache_correction or None,
        context_tokens=summary.context_tokens,
        attended_fraction=summary.attended_fraction,
        recall=summary.recall,
        dense_fallback=summary.dense_fallback,
        memory=summary.memory,
    )


def headers_before(decision: Decision, defaults: PlanDefaults) -> dict[str, str]:
    """Return the `x-lychee-*` headers that are known before the engine has finished (streams).

    The plan's defaults fill in what the engine was not asked for, as the engine does it.
    """
    sent = decision.sent.budget_alone()
    budget: object = sent.budget
    mode = sent.mode or "topk"
    if sent == LycheeRequest():
        budget, mode = defaults.budget, defaults.mode
    elif budget is None and mode == "topk":
        budget = defaults.budget if defaults.mode == "topk" else "auto"
    return _headers(
        {
            "budget": budget,
            "mode": None if budget == "dense" else mode,
            "reason": decision.reason,
            "rule": decision.rule,
            "tier": decision.tier,
        }
    )


def headers_after(answer: LycheeAnswer) -> dict[str, str]:
    """Return the `x-lychee-*` headers of a finished answer."""
    return _headers(answer.model_dump(exclude={"dense_fallback", "policy", "cache_correction", "memory"}))


def _headers(known: dict[str, object]) -> dict[str, str]:
    return {f"x-lychee-{key.replace('_', '-')}": str(value) for key, value in known.items() if value is not None}
