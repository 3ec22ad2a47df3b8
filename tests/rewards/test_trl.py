"""Reward functions as TRL's GRPO trainer calls them."""

from typing import Any

import pytest

from lychee_sgl.rewards import Gate, GatedRewards, Level
from lychee_sgl.rewards.trl import GatedRewardFunction, TrajectoryRewardFunction

CHAIN = GatedRewards((Level("right", Gate(1.0)), Level("short", weight=0.5)))


def right(*, completions: list[str], answer: list[str], **given: Any) -> list[float | None]:
    del given
    return [None if want == "" else float(said == want) for said, want in zip(completions, answer, strict=True)]


def short(*, completions: list[str], **given: Any) -> list[float | None]:
    assert {"prompts", "completion_ids", "trainer_state"} <= set(given)
    return [None if said == "?" else float(len(said) < 3) for said in completions]


def called(function: Any, completions: list[str], **columns: Any) -> list[float | None]:
    count = len(completions)
    ids = [[1]] * count
    result: list[float | None] = function(
        prompts=["p"] * count, completions=completions, completion_ids=ids, trainer_state=object(), **columns
    )
    return result


def test_several_functions_as_one() -> None:
    gated = GatedRewardFunction(CHAIN, {"right": right, "short": short})
    told: dict[str, float] = {}
    completions = ["42", "forty", "42", "1", "?"]
    answers = ["42", "forty", "41", "", ""]
    # right and short; right and long; wrong and short; `right` does not apply; nothing applies
    scores = called(gated, completions, answer=answers, log_metric=told.__setitem__)
    assert scores == [1.5, 1.0, 0.0, 0.5, None]
    assert told == {"level/right": pytest.approx(2 / 3), "level/short": pytest.approx(3 / 4)}
    assert gated.__name__ == "gated"


def test_direct_accumulation_is_the_plain_sum() -> None:
    gated = GatedRewardFunction(CHAIN.direct(), {"right": right, "short": short})
    assert called(gated, ["42"], answer=["41"]) == [0.5]


def test_trajectories_from_a_column_and_from_environments() -> None:
    gated = TrajectoryRewardFunction(CHAIN)
    played = [[{"short": 1.0}, {"right": 1.0}], [{"short": 1.0}], [], None]
    assert called(gated, ["a"] * 4, step_rewards=played) == [1.5, 0.0, 0.0, None]

    class Played:
        def __init__(self, steps: object) -> None:
            self.step_rewards = steps

    assert called(gated, ["a"] * 2, environments=[Played(played[0]), object()]) == [1.5, None]


def test_refusals() -> None:
    async def later(**given: Any) -> list[float | None]:
        del given
        return []

    with pytest.raises(ValueError, match="functions are right; allowed: one each of right, short"):
        GatedRewardFunction(CHAIN, {"right": right})
    with pytest.raises(ValueError, match="function of short is asynchronous"):
        GatedRewardFunction(CHAIN, {"right": right, "short": later})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="reward function of right returned 0 scores; allowed: 1"):
        called(GatedRewardFunction(CHAIN, {"right": lambda **given: [], "short": short}), ["a"])
    with pytest.raises(ValueError, match="no column 'step_rewards' and no environments"):
        called(TrajectoryRewardFunction(CHAIN), ["a"])
    with pytest.raises(ValueError, match="step_rewards has 1 trajectories; allowed: 2"):
        called(TrajectoryRewardFunction(CHAIN), ["a", "b"], step_rewards=[[]])
