"""The algebra of gated rewards: from the named rewards of a trajectory's steps to what counts. Standard library only.

```
chain = GatedRewards((Level("outcome", Gate(0.5)), Level("format", weight=0.1)))
chain.total([{"format": 1.0}, {"format": 1.0, "outcome": 1.0}])             # 1.2
chain.total([{"format": 1.0}, {"format": 1.0}])                             # 0.0: the gate is closed
chain.direct().total([{"format": 1.0}, {"format": 1.0}])                    # 0.2: direct accumulation
```
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

Steps = Sequence[Mapping[str, float]]
"""The rewards of a trajectory: one mapping a step, from the name of a level to a number. A missing name is 0."""

STD_EPS = 1e-4
"""Added to a group's standard deviation before dividing by it, as TRL does."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a level's value has to reach for lower levels to count.

    Attributes:
        at: the threshold.
        strict: whether the value has to be above it; else it passes at equality too.
    """

    at: float
    strict: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.at):
            raise ValueError(f"gate is at {self.at}; allowed: a finite number")

    def passes(self, value: float) -> bool:
        """Whether levels below may count."""
        return value > self.at if self.strict else value >= self.at


@dataclass(frozen=True, slots=True)
class Level:
    """One reward of a priority order.

    Attributes:
        name: as steps call it.
        gate: what it has to reach for lower ones to count; None: they need nothing of it.
        weight: what a unit of it is worth in the total. Gates look at values before weights.
    """

    name: str
    gate: Gate | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name of a level is ''; allowed: a string of 1 character or more")
        if not math.isfinite(self.weight) or self.weight < 0:
            raise ValueError(f"weight of {self.name} is {self.weight}; allowed: a finite number from 0 on")


@dataclass(frozen=True, slots=True)
class Account:
    """What a trajectory's rewards came to.

    Attributes:
        values: the sum of each level's rewards, counted or not, before weights.
        counted: the levels that count, highest first.
        closed_by: the first level whose gate did not pass, if it kept others from counting.
        total: the sum of weight times value over the levels that count.
    """

    values: Mapping[str, float]
    counted: tuple[str, ...]
    closed_by: str | None
    total: float


@dataclass(frozen=True, slots=True)
class GatedRewards:
    """Rewards in priority order, the highest first.

    Attributes:
        levels: of different names, one or more.
        gated: False: every gate counts as open (direct accumulation).
    """

    levels: tuple[Level, ...]
    gated: bool = True

    def __post_init__(self) -> None:
        names = [level.name for level in self.levels]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"levels are {names}; allowed: one or more, each of a name of its own")

    def direct(self) -> "GatedRewards":
        """The same levels with every gate open."""
        return replace(self, gated=False)

    def only(self, names: Collection[str]) -> "GatedRewards":
        """The same order without the levels that are not named.

        Raises:
            ValueError: none is left, or a name is of no level.
        """
        self._known(names, "names")
        return replace(self, levels=tuple(level for level in self.levels if level.name in names))

    def account(self, steps: Steps) -> Account:
        """Add up a trajectory.

        Args:
            steps: its rewards; none at all is a trajectory whose values are all 0.

        Raises:
            ValueError: a name is of no level, or a reward is not a finite number.
        """
        self._check(steps)
        values = {level.name: _sum(step.get(level.name, 0.0) for step in steps) for level in self.levels}
        counted: list[Level] = []
        closed_by = None
        for level in self.levels:
            counted.append(level)
            if self.gated and level.gate is not None and not level.gate.passes(values[level.name]):
                closed_by = level.name if len(counted) < len(self.levels) else None
                break
        total = _sum(level.weight * values[level.name] for level in counted)
        return Account(values, tuple(level.name for level in counted), closed_by, total)

    def total(self, steps: Steps) -> float:
        """The trajectory's reward: `account(steps).total`."""
        return self.account(steps).total

    def count(self, steps: Steps) -> list[float]:
        """What each step's rewards count, once the whole trajectory is known.

        Args:
            steps: the trajectory's rewards.

        Returns:
            One number a step; up to rounding they add up to the total.

        Raises:
            ValueError: as `account`.
        """
        counted = self.only(self.account(steps).counted).levels
        return [_sum(level.weight * step.get(level.name, 0.0) for level in counted) for step in steps]

    def returns(self, steps: Steps, discount: float = 1.0) -> list[float]:
        """The discounted sum of what counts from each step on: what a policy gradient weighs the step's action with.

        Args:
            steps: the trajectory's rewards.
            discount: of the next step's return, in [0, 1].

        Raises:
            ValueError: as `account`, or the discount is out of range.
        """
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"discount is {discount}; allowed: a number from 0 to 1")
        returns: list[float] = []
        later = 0.0
        for reward in reversed(self.count(steps)):
            later = reward + discount * later
            returns.append(later)
        return returns[::-1]

    def _check(self, steps: Steps) -> None:
        for number, step in enumerate(steps):
            self._known(step, f"step {number}")
            for name, value in step.items():
                if not math.isfinite(value):
                    raise ValueError(f"step {number}: {name} is {value}; allowed: a finite number")

    def _known(self, names: Collection[str], where: str) -> None:
        known = [level.name for level in self.levels]
        for name in names:
            if name not in known:
                raise ValueError(f"{where}: {name!r} is no level; known: {', '.join(known)}")


def _sum(values: Iterable[float]) -> float:
    """The exact sum, rounded once: the order of the steps decides no gate."""
    try:
        return math.fsum(values)
    except OverflowError as error:
        raise ValueError("rewards add up to no finite number; allowed: rewards and weights whose sums are") from error


def group_advantages(totals: Sequence[float], *, scale: bool = True) -> list[float]:
    """Advantages of trajectories that answer the same task (GRPO).

    Args:
        totals: one total a trajectory.
        scale: divide by the group's sample standard deviation; a group of one, or of equal totals, gives zeros.

    Raises:
        ValueError: a total is not a finite number.
    """
    for number, total in enumerate(totals):
        if not math.isfinite(total):
            raise ValueError(f"total {number} is {total}; allowed: a finite number")
    if not totals or len({*totals}) == 1:  # a rounded mean of equal numbers can be another number
        return [0.0] * len(totals)
    mean = fmean(totals)
    unit = stdev(totals) + STD_EPS if scale else 1.0
    return [(total - mean) / unit for total in totals]


def advantages(chain: GatedRewards, group: Sequence[Steps], *, scale: bool = True) -> list[float]:
    """From the step rewards of a group of trajectories to one advantage for each, which all its steps share.

    Args:
        chain: how rewards add up.
        group: trajectories of one task.
        scale: as `group_advantages`.

    Raises:
        ValueError: as `GatedRewards.account`.
    """
    return group_advantages([chain.total(steps) for steps in group], scale=scale)
