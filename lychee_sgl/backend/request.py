"""A request's budget: read from `custom_params`, checked, and resolved against the plan's defaults (DESIGN.md 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lychee_kernels.decode_plan.api import DENSE
from lychee_kernels.layout import Mode
from lychee_kernels.policies import Policy
from lychee_kernels.policies.api import MODES as SIZED_MODES
from lychee_sgl.config import MOST_CORRECTION
from lychee_sgl.memory.settings import KEYS as MEMORY_KEYS
from lychee_sgl.memory.settings import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lychee_sgl.heads.plan import PlanDefaults

MODES = {"topk": Mode.TOPK, "ratio": Mode.RATIO, "threshold": Mode.THRESHOLD, "top_p": Mode.TOP_P}
MODE_NAMES = {mode: name for name, mode in MODES.items()}
POLICIES = {policy.name.lower(): policy for policy in Policy}
KEYS = ("budget", "mode", "value", "policy", "seed", "cache_correction")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRequest:
    """What a request asked for; None where it said nothing."""

    budget: int | Literal["dense", "auto"] | None = None
    mode: Literal["topk", "ratio", "threshold", "top_p"] | None = None
    value: float | None = None
    policy: str | None = None
    seed: int | None = None
    cache_correction: int | None = None

    @classmethod
    def from_custom_params(
        cls, params: Mapping[str, Any] | None, context_window: int, *, rivals: bool = False
    ) -> BudgetRequest:
        """Reads and checks the `lychee_*` entries of SGLang's `custom_params`.

        Args:
            params: the request's `custom_params`.
            context_window: the largest budget that makes sense, in tokens.
            rivals: whether policies beside the plan are served.

        Raises:
            ValueError: an entry is unknown or not allowed; the message names it, its value and what is allowed.
        """
        if params is not None and not isinstance(params, dict):
            raise ValueError(f"custom_params is {params!r:.80}, allowed: an object")
        ours = {k.removeprefix(PREFIX): v for k, v in (params or {}).items() if str(k).startswith(PREFIX)}
        unknown = sorted(ours.keys() - {*KEYS})
        if unknown and unknown[0] in MEMORY_KEYS:
            raise ValueError(f"{PREFIX}{unknown[0]} is for /v1/chat/completions only")
        if unknown:
            allowed = ", ".join(f"{PREFIX}{key}" for key in KEYS)
            raise ValueError(f"{PREFIX}{unknown[0]} is unknown, allowed: {allowed}")
        budget, mode, value = ours.get("budget"), ours.get("mode"), ours.get("value")
        whole = isinstance(budget, int) and not isinstance(budget, bool) and 1 <= budget <= context_window
        if budget is not None and budget not in ("dense", "auto") and not whole:
            raise ValueError(
                f"lychee_budget is {budget!r}, allowed: a whole number from 1 to {context_window}, 'dense' or 'auto'"
            )
        if mode is not None and mode not in [*MODES]:  # a list: what has no hash is asked for, too
            raise ValueError(f"lychee_mode is {mode!r}, allowed: {', '.join(MODES)}")
        if budget == "dense" and mode is not None:
            raise ValueError(f"lychee_mode is {mode!r}, not allowed with lychee_budget 'dense'")
        _check_value(mode, value)
        policy, seed = ours.get("policy"), ours.get("seed")
        _check_policy(policy, seed, budget, mode, rivals=rivals)
        number = None if value is None else float(value)
        every = ours.get("cache_correction")
        if every is not None and (type(every) is not int or not 0 <= every <= MOST_CORRECTION):
            raise ValueError(
                f"lychee_cache_correction is {every!r}, allowed: a whole number from 0 to {MOST_CORRECTION}"
            )
        return cls(budget=budget, mode=mode, value=number, policy=policy, seed=seed, cache_correction=every)


def _check_value(mode: str | None, value: Any) -> None:
    if mode in (None, "topk"):
        if value is not None:
            raise ValueError(f"lychee_value is {value!r}, allowed only with lychee_mode ratio, threshold or top_p")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    highest_allowed = mode != "threshold"
    if not number or not 0 < value <= 1 or (value == 1 and not highest_allowed):
        above = "to 1" if highest_allowed else "and below 1"
        raise ValueError(f"lychee_value is {value!r}, allowed with lychee_mode {mode}: a number above 0 {above}")


def _check_policy(policy: Any, seed: Any, budget: Any, mode: str | None, *, rivals: bool) -> None:
    if policy is not None and policy not in [*POLICIES]:
        raise ValueError(f"lychee_policy is {policy!r}, allowed: {', '.join(POLICIES)}")
    rival = policy not in (None, "plan")
    if rival and not rivals:
        raise ValueError(
            f"lychee_policy is {policy!r}, allowed: 'plan'; the others are for evaluation, and served by an engine "
            "with LYCHEE_RIVAL_POLICIES=1 in its environment"
        )
    if rival and budget == "dense":
        raise ValueError(f"lychee_policy is {policy!r}, not allowed with lychee_budget 'dense'")
    if rival and mode is not None and MODES[mode] not in SIZED_MODES:
        raise ValueError(f"lychee_mode is {mode!r}, allowed with lychee_policy {policy!r}: topk, ratio")
    if seed is None:
        return
    if policy != "random":
        raise ValueError(f"lychee_seed is {seed!r}, allowed only with lychee_policy 'random'")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise ValueError(f"lychee_seed is {seed!r}, allowed: a whole number from 0 to {2**31 - 1}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """What the row tables hold of a request.

    Attributes:
        mode: how sets are bounded.
        budget: tokens; `DENSE`, or 0 where the mode has no bound.
        value: the fraction of a mode that needs one, else 0.
        sinks: first positions kept.
        recent: last positions kept.
        policy: how sets are chosen.
        seed: of the policy `random`.
        cache_correction: decoded tokens after which they are run again densely; 0 for never.
    """

    mode: Mode
    budget: int
    value: float
    sinks: int
    recent: int
    policy: Policy = Policy.PLAN
    seed: int = 0
    cache_correction: int = 0


def resolve(
    request: BudgetRequest, defaults: PlanDefaults, prompt_tokens: int, *, cache_correction: int = 0
) -> RowSpec:
    """Fills in what a request left open (DESIGN.md 3).

    Args:
        request: what was asked.
        defaults: the plan's.
        prompt_tokens: length of the prompt, for `auto`.
        cache_correction: the engine's default.

    Raises:
        ValueError: a policy that needs sets of a known size, and the plan's own mode gives none.
    """
    asked_nothing = request.budget is None and request.mode is None
    budget = defaults.budget if asked_nothing else request.budget
    mode = (defaults.mode if asked_nothing else request.mode) or "topk"
    value = (defaults.value if asked_nothing else request.value) or 0.0
    if budget is None and mode == "topk":
        # asked for topk without a number: the plan's, unless that one bounds another mode
        budget = defaults.budget if defaults.mode == "topk" else "auto"
    if budget == "auto":
        budget = defaults.auto.resolve(prompt_tokens)
    number = DENSE if budget == "dense" else budget or 0
    policy = POLICIES[request.policy or "plan"]
    if policy is not Policy.PLAN and MODES[mode] not in SIZED_MODES:
        raise ValueError(f"lychee_mode is not given and the plan's is {mode!r}; with lychee_policy: topk, ratio")
    return RowSpec(
        mode=MODES[mode],
        budget=int(number),
        value=value,
        sinks=defaults.sinks,
        recent=defaults.recent,
        policy=policy,
        seed=request.seed or 0,
        cache_correction=cache_correction if request.cache_correction is None else request.cache_correction,
    )
