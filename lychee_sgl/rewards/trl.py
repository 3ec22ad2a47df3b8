"""Gated rewards as reward functions of TRL's trainers (GRPO and its kin). TRL is not imported; standard library only.

TRL (1.x) calls a reward function as `f(prompts=, completions=, completion_ids=, <columns of the data set>=,
trainer_state=, log_extra=, log_metric=, environments=)`, each list with one entry a completion, and takes a list of
numbers or None, None where the function does not apply. Rewards of several functions are added up: that is direct
accumulation. One of the functions below stands for all of them instead: `GRPOTrainer(reward_funcs=[gated], ...)`.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lychee_sgl.rewards.gated import GatedRewards


class RewardFunction(Protocol):
    """What TRL calls a custom reward function."""

    def __call__(self, **given: Any) -> Sequence[float | None]:
        """Score every completion."""
        ...


class GatedRewardFunction:
    """Several reward functions as one, gated: each scores a completion on one level.

    A level on which a completion's score is None does not apply to it: it neither counts nor gates. A completion on
    which none applies is scored None.
    """

    def __init__(self, chain: GatedRewards, functions: Mapping[str, RewardFunction], name: str = "gated") -> None:
        """Binds functions to levels.

        Args:
            chain: the levels.
            functions: one reward function for each level, by its name.
            name: under which TRL logs the total.

        Raises:
            ValueError: names of levels and functions differ, or a function is asynchronous.
        """
        levels = [level.name for level in chain.levels]
        if set(levels) != set(functions):
            raise ValueError(
                f"functions are {', '.join(functions) or 'none'}; allowed: one each of {', '.join(levels)}"
            )
        for level, function in functions.items():
            if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
                raise ValueError(f"function of {level} is asynchronous; allowed: a plain function")
        self.chain, self.functions = chain, dict(functions)
        self.__name__ = name

    def __call__(self, **given: Any) -> list[float | None]:
        """Score every completion of a batch.

        Args:
            given: what TRL gives a reward function.

        Raises:
            ValueError: a function returned another number of scores than there are completions, or one that is no
                finite number.
        """
        count = len(given["completions"])
        scores: dict[str, Sequence[float | None]] = {}
        for level in self.chain.levels:
            scores[level.name] = self.functions[level.name](**given)
            if len(scores[level.name]) != count:
                raise ValueError(
                    f"reward function of {level.name} returned {len(scores[level.name])} scores; allowed: {count}"
                )
        _log(given, scores)
        return [self._one({name: column[row] for name, column in scores.items()}) for row in range(count)]

    def _one(self, scores: Mapping[str, float | None]) -> float | None:
        applies = {name: float(score) for name, score in scores.items() if score is not None}
        return self.chain.only(applies).total([applies]) if applies else None


class TrajectoryRewardFunction:
    """The gated total of trajectories whose step rewards were collected while they were played.

    They are taken from a column (what a `rollout_func` returned beside its tokens) or, with `environment_factory`, from
    an attribute of each environment.
    """

    def __init__(self, chain: GatedRewards, source: str = "step_rewards", name: str = "gated") -> None:
        """Says where trajectories are found.

        Args:
            chain: how rewards add up.
            source: the column's name, and the attribute's: a list of mappings, one a step.
            name: under which TRL logs the total.
        """
        self.chain, self.source = chain, source
        self.__name__ = name

    def __call__(self, **given: Any) -> list[float | None]:
        """Score every completion of a batch.

        Args:
            given: what TRL gives a reward function.

        Raises:
            ValueError: there is neither a column nor an environment with step rewards, or they are not ones of the
                chain.
        """
        count = len(given["completions"])
        if self.source in given:
            played = list(given[self.source])
        elif given.get("environments") is not None:
            played = [getattr(environment, self.source, None) for environment in given["environments"]]
        else:
            raise ValueError(f"no column {self.source!r} and no environments; allowed: one of them")
        if len(played) != count:
            raise ValueError(f"{self.source} has {len(played)} trajectories; allowed: {count}, one a completion")
        accounts = [None if steps is None else self.chain.account(steps) for steps in played]
        levels = [level.name for level in self.chain.levels]
        _log(given, {name: [None if a is None else a.values[name] for a in accounts] for name in levels})
        return [None if account is None else account.total for account in accounts]


def _log(given: Mapping[str, Any], columns: Mapping[str, Sequence[float | None]]) -> None:
    """Show each level's mean beside the total, where the trainer takes metrics."""
    tell = given.get("log_metric")
    if tell is None:
        return
    for name, column in columns.items():
        seen = [score for score in column if score is not None]
        if seen:
            tell(f"level/{name}", sum(seen) / len(seen))
