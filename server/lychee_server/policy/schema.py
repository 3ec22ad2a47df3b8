"""The policy file's models: tiers, rules, outcomes and their bounds. All of it is frozen; a reload makes a new one."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_TIERS = 32
MAX_RULES = 64
LARGEST_BUDGET = 10_000_000
"""Above any context window: budgets are checked against the engine's own when they are used."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]
Tokens = Annotated[int, Field(ge=1, le=LARGEST_BUDGET)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Recall = Annotated[float, Field(ge=0.5, le=0.999, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Patterns = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(min_length=1)]
Limit = Annotated[int, Field(ge=1, le=10_000_000_000)]


class _Model(BaseModel):
    # Strict: "512" is no number and yes is no budget. Lists become tuples: nothing of a policy can be changed.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Bounds(_Model):
    """Lower and upper limit of a budget, in tokens; None: no limit."""

    min: Tokens | None = None
    max: Tokens | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min}, above max, which is {self.max}")
        return self

    def clamp(self, budget: int) -> int:
        """Return the nearest budget within the limits."""
        return max(self.min or 1, min(budget, self.max or budget))

    def within(self, outer: Bounds) -> Bounds:
        """Return these limits brought inside others, which win where the two do not overlap."""
        low = max(self.min or 1, outer.min or 1)
        high = min(self.max or LARGEST_BUDGET, outer.max or LARGEST_BUDGET)
        low, high = outer.clamp(low), outer.clamp(high)
        return Bounds(min=min(low, high) if low > 1 else None, max=high if high < LARGEST_BUDGET else None)


class Range(_Model):
    """A share of the prompt, not below `min` and not above `max`; without `share`, the head plan's."""

    min: Tokens
    max: Tokens
    share: Share | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, above max, which is {self.max}")
        return self


class Outcome(_Model):
    """What a tier, a rule or the default gives: exactly one of the first five; `min` and `max` bound the last three.

    Attributes:
        budget: tokens, all (`dense`), or the head plan's own share of the prompt (`auto`).
        range: a share of the prompt within limits.
        ratio: a share of the context, growing with it.
        min_recall: the smallest budget with which answers hold this recall.
        target_itl_ms: the largest budget that takes at most so many milliseconds a token.
    """

    budget: Tokens | Literal["dense", "auto"] | None = None
    range: Range | None = None
    ratio: Share | None = None
    min_recall: Recall | None = None
    target_itl_ms: Milliseconds | None = None
    min: Tokens | None = None
    max: Tokens | None = None

    @field_validator("budget", mode="before")
    @classmethod
    def _in_one_sentence(cls, value: object) -> object:
        whole = type(value) is int and 1 <= value <= LARGEST_BUDGET
        if whole or value is None or value in ("dense", "auto"):
            return value
        raise ValueError("allowed are a whole number from 1, dense and auto")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        kinds = ("budget", "range", "ratio", "min_recall", "target_itl_ms")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            shown = " and ".join(given) or "none"
            raise ValueError(f"exactly one of {', '.join(kinds)} is needed; given: {shown}")
        if given[0] in ("budget", "range") and (self.min is not None or self.max is not None):
            raise ValueError(f"min and max go with ratio, min_recall and target_itl_ms, not with {given[0]}")
        self.bounds  # noqa: B018 - refuses crossed limits
        return self

    @property
    def bounds(self) -> Bounds:
        """The outcome's own limits."""
        if self.range is not None:
            return Bounds(min=self.range.min, max=self.range.max)
        return Bounds(min=self.min, max=self.max)


class Tier(_Model):
    """What the holders of a kind of API key get.

    Attributes:
        priority: requests of a higher one leave the queue first.
        requests_per_minute: limit of each key; None: unlimited.
        tokens_per_minute: prompt and generated tokens of each key; None: unlimited.
        max_in_flight: requests of each key at one time; None: unlimited.
        bounds: no budget of this tier lies outside, whoever asked for it.
        gives: what its requests get that ask for nothing or `auto`; None: what the rules say.
    """

    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_in_flight: Limit | None = None
    bounds: Bounds = Bounds()
    gives: Outcome | None = None


class Lengths(_Model):
    """Prompt lengths in tokens, both ends included; None: open."""

    min: Annotated[int, Field(ge=0, le=LARGEST_BUDGET)] | None = None
    max: Annotated[int, Field(ge=0, le=LARGEST_BUDGET)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min}, above max, which is {self.max}")
        return self

    def contains(self, tokens: int) -> bool:
        """Whether a prompt's length is in the range."""
        return (self.min is None or tokens >= self.min) and (self.max is None or tokens <= self.max)


class When(_Model):
    """What a request must be for a rule to hold; what is left out always holds.

    Attributes:
        prompt_tokens: length of the prompt.
        model: the request's `model`, as shell patterns; one must match, capitals count.
        reasoning_effort: the request's `reasoning_effort`; a request without one does not match.
        route: `chat` or `completions`.
        streaming: whether the answer is streamed.
        tier: names of tiers; a caller without a tier does not match.
    """

    prompt_tokens: Lengths | None = None
    model: Patterns | None = None
    reasoning_effort: Patterns | None = None
    route: Literal["chat", "completions"] | None = None
    streaming: bool | None = None
    tier: Patterns | None = None

    @field_validator("model", "reasoning_effort", "tier", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    def matches_model(self, model: str | None) -> bool:
        """Whether the request's model fits one of the patterns."""
        return self.model is None or (model is not None and any(fnmatchcase(model, each) for each in self.model))

    def matches_effort(self, effort: str | None) -> bool:
        """Whether the request's reasoning effort is one of those named."""
        return self.reasoning_effort is None or effort in self.reasoning_effort


class Rule(_Model):
    """One line of the policy: the first rule that matches decides."""

    name: Name
    when: When = When()
    gives: Outcome


class Ramp(_Model):
    """Pressure begins above `low` and is complete at `high`."""

    low: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    high: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}, not below high, which is {self.high:g}")
        return self

    def level(self, value: float) -> float:
        """Return how far a signal is between `low` (0) and `high` (1)."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


class Pressure(_Model):
    """When and how far budgets shrink under load.

    Attributes:
        queue: requests that wait, in the gateway and in the engine, as counts.
        kv_use: share of the engine's KV pool in use by running requests.
        floor: smallest budget that pressure leads to, for tiers without a lower bound.
        interval: seconds between two looks at the engine.
        rise_seconds: time constant with which the level follows a growing load.
        fall_seconds: the same for a falling load.
    """

    queue: Ramp = Ramp(low=4, high=32)
    kv_use: Ramp = Ramp(low=0.8, high=0.97)
    floor: Tokens = 256
    interval: Annotated[float, Field(ge=0.05, le=60, allow_inf_nan=False)] = 1.0
    rise_seconds: Seconds = 5.0
    fall_seconds: Seconds = 30.0


class RecallHold(_Model):
    """How `min_recall` is held.

    Attributes:
        share: so many of a bucket's answers shall reach the asked recall; 0.5 holds the middle one.
        floor: smallest budget that is tried.
        memory: answers after which an old one counts for a third.
    """

    share: Annotated[float, Field(ge=0.5, le=0.99)] = 0.9
    floor: Tokens = 64
    memory: Annotated[int, Field(ge=20, le=10_000)] = 200


class Policy(_Model):
    """A whole policy file.

    Attributes:
        version: of the format.
        default: what requests get for which neither tier nor rule speaks; None: the head plan's default.
        bounds: limits of callers without a tier.
        tiers: by name.
        rules: in order; the first match decides.
        pressure: None: budgets do not depend on the load.
        recall: how `min_recall` is held.
    """

    version: Literal[1]
    default: Outcome | None = None
    bounds: Bounds = Bounds()
    tiers: Annotated[dict[Name, Tier], Field(max_length=MAX_TIERS)] = {}
    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)] = ()
    pressure: Pressure | None = None
    recall: RecallHold = RecallHold()

    @field_validator("rules", mode="before")
    @classmethod
    def _tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("rules")
    @classmethod
    def _unique(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        names = [rule.name for rule in rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rules have the name {name!r}")
        return rules

    @model_validator(mode="after")
    def _known_tiers(self) -> Self:
        for rule in self.rules:
            for name in rule.when.tier or ():
                if name not in self.tiers:
                    known = ", ".join(self.tiers) or "none"
                    raise ValueError(f"rule {rule.name!r} is for the tier {name!r}; tiers are: {known}")
        return self

    def tier(self, name: str | None) -> Tier:
        """Return a caller's tier; for a caller without one, a tier without limits and with the policy's bounds.

        Raises:
            UnknownTier: the policy has no tier of that name.
        """
        if name is None:
            return Tier(bounds=self.bounds)
        if name not in self.tiers:
            raise UnknownTier(name, self.tiers)
        return self.tiers[name]

    def outcomes(self) -> list[Outcome]:
        """Return every outcome that the policy can give."""
        given = [self.default, *(tier.gives for tier in self.tiers.values()), *(rule.gives for rule in self.rules)]
        return [outcome for outcome in given if outcome is not None]


class UnknownTier(ValueError):
    """A key names a tier that the policy does not have."""

    def __init__(self, name: str, known: dict[str, Tier]) -> None:
        super().__init__(f"there is no tier {name!r} in the policy; tiers are: {', '.join(known) or 'none'}")
