"""What an environment of several turns promises, in gymnasium's words, and a rollout through one.

Neither gymnasium nor a trainer is imported: an environment is anything with these three methods. Its rewards go out by
name, in `info["rewards"]`; `reward` is their sum. Standard library only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

ObsType = TypeVar("ObsType")
ActType = TypeVar("ActType")
ActIn = TypeVar("ActIn", contravariant=True)


class ResetNeeded(RuntimeError):
    """A step where there is no episode: before the first reset, after its end, after `close`."""


class Step(NamedTuple, Generic[ObsType]):
    """What `step` returns; it unpacks as gymnasium's five values.

    Attributes:
        observation: what the policy sees next.
        reward: sum of the step's rewards: direct accumulation.
        terminated: the episode came to its own end.
        truncated: it was cut off by a limit.
        info: `rewards`, the step's rewards by name, and whatever else the environment tells.
    """

    observation: ObsType
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether no step can follow."""
        return self.terminated or self.truncated

    @property
    def rewards(self) -> Mapping[str, float]:
        """The step's rewards by name."""
        rewards: Mapping[str, float] = self.info["rewards"]
        return rewards


def step_of(
    observation: ObsType,
    rewards: Mapping[str, float],
    *,
    terminated: bool = False,
    truncated: bool = False,
    **told: Any,
) -> Step[ObsType]:
    """A step whose reward is the sum of its named rewards."""
    return Step(observation, sum(rewards.values()), terminated, truncated, {"rewards": dict(rewards), **told})


class Environment(Protocol[ObsType, ActIn]):
    """An environment of several turns."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        """Begin an episode; what is drawn for it follows from the seed."""
        ...

    def step(self, action: ActIn) -> Step[ObsType]:
        """Take a turn.

        Raises:
            ResetNeeded: no episode is under way.
        """
        ...

    def close(self) -> None:
        """Give back what the environment holds; may be called twice."""
        ...


@dataclass(slots=True)
class Trajectory(Generic[ObsType, ActType]):
    """One episode.

    Attributes:
        observations: what the policy saw, one for each action, and the last one.
        actions: what it did.
        rewards: by name, one mapping for each action: what `GatedRewards` takes.
        infos: what the environment told, `reset` first.
        terminated: whether the episode came to its own end.
        truncated: whether it was cut off, by the environment or by the rollout's limit.
    """

    observations: list[ObsType] = field(default_factory=list)
    actions: list[ActType] = field(default_factory=list)
    rewards: list[Mapping[str, float]] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False


def rollout(
    environment: Environment[ObsType, ActType],
    policy: Callable[[ObsType], ActType],
    *,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
    limit: int | None = None,
) -> Trajectory[ObsType, ActType]:
    """Play one episode.

    Args:
        environment: where.
        policy: from an observation to an action.
        seed: of the episode.
        options: for `reset`.
        limit: the most turns; None: the environment's own.

    Raises:
        ValueError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; allowed: 1 or more, or None")
    observation, info = environment.reset(seed=seed, options=options)
    played: Trajectory[ObsType, ActType] = Trajectory(observations=[observation], infos=[info])
    while not (played.terminated or played.truncated):
        action = policy(observation)
        step = environment.step(action)
        observation = step.observation
        played.observations.append(observation)
        played.actions.append(action)
        played.rewards.append(step.rewards)
        played.infos.append(step.info)
        played.terminated, played.truncated = step.terminated, step.truncated
        if limit is not None and len(played.actions) >= limit and not step.terminated:
            played.truncated = True
    return played
