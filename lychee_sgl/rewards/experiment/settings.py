"""What the experiment sweeps. Standard library only."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from lychee_sgl.rewards.gated import Gate, GatedRewards, Level

SCHEMA: Final = "lychee-sgl/gated-rewards"
OUTCOMES: Final = (0.0, 0.25, 0.5, 1.0)
"""Nothing submitted, an empty patch, a wrong one, the right one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One reward, and one world to train in.

    Attributes:
        farm: what a well-formed call is worth.
        gate: the outcome from which on calls count; None: direct accumulation.
        shortest: the smallest limit of turns; below the world's longest, an episode's limit is drawn and not told.
        warm: updates on the outcome alone before calls are worth anything.
    """

    farm: float
    gate: float | None
    shortest: int
    warm: int = 0

    @property
    def name(self) -> str:
        """`direct` or `gated 0.5`."""
        return "direct" if self.gate is None else f"gated {self.gate:g}"

    def chain(self) -> GatedRewards:
        """The rewards as `lychee_sgl.rewards` has them."""
        levels = (Level("outcome", Gate(self.gate or 0.0)), Level("format", weight=self.farm))
        return GatedRewards(levels, gated=self.gate is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The world, the learner and the sweep.

    Attributes:
        places: where the fault can be.
        noise: actions that are malformed.
        longest: the most turns of an episode.
        worlds: pairs to sweep: the smallest limit of turns (the longest itself: every episode has it, and a policy can
            count on it), and the share of the updates that come first and are on the outcome alone.
        farms: what a well-formed call is worth, to sweep.
        gates: thresholds to sweep, direct accumulation beside them.
        seeds: how many, from 0.
        updates: steps of the optimiser.
        tasks: places drawn for an update.
        group: episodes of a task.
        width: of the policy's hidden layer.
        rate: Adam's learning rate.
        entropy: weight of the policy's entropy in the objective.
    """

    places: int = 3
    noise: int = 6
    longest: int = 10
    worlds: tuple[tuple[int, float], ...] = ((10, 0.0), (10, 0.3), (5, 0.0))
    farms: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.5)
    gates: tuple[float, ...] = (0.25, 0.5, 1.0)
    seeds: int = 6
    updates: int = 500
    tasks: int = 8
    group: int = 8
    width: int = 32
    rate: float = 0.01
    entropy: float = 0.0

    def __post_init__(self) -> None:
        for name, low in (("places", 2), ("noise", 0), ("seeds", 1), ("updates", 10), ("tasks", 1), ("group", 2),
                          ("width", 1), ("longest", 2)):  # fmt: skip
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {low} or more")
        if not self.worlds or not all(1 <= turns <= self.longest and 0 <= warm < 1 for turns, warm in self.worlds):
            raise ValueError(
                f"worlds is {self.worlds}; allowed: pairs of 1 to {self.longest} turns and a share below 1"
            )
        if not self.farms or not all(0 <= farm <= 10 for farm in self.farms):
            raise ValueError(f"farms is {self.farms}; allowed: numbers from 0 to 10")
        if not all(OUTCOMES[0] < gate <= OUTCOMES[-1] for gate in self.gates):
            raise ValueError(f"gates is {self.gates}; allowed: numbers above 0, up to 1")
        if not self.rate > 0 or not self.entropy >= 0:
            raise ValueError(f"rate is {self.rate}, entropy {self.entropy}; allowed: above 0, and 0 or more")

    def arms(self) -> tuple[Arm, ...]:
        """Everything that is trained, each with every seed."""
        return tuple(
            Arm(farm=farm, gate=gate, shortest=shortest, warm=round(warm * self.updates))
            for shortest, warm in self.worlds
            for farm in self.farms
            for gate in (None, *self.gates)
        )

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)
