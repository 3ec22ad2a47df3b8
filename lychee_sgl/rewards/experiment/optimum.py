"""What the best policy of the experiment's world does under a reward: exact, by dynamic programming.

Where the best policy itself does not submit, a collapse is decided by the reward, and training only finds it. Where it
submits, a collapse is the learner's. The record holds this beside what training did. Standard library only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from lychee_sgl.rewards.experiment.settings import OUTCOMES, Arm


class Belief(NamedTuple):
    """All that matters of what is known.

    Attributes:
        clean: places known to be clean, while the fault is not found.
        found: whether the fault is.
        patch: what the patch is on: `none`, `wrong` (a clean place), `right`, `open` (a place not looked at).
    """

    clean: int
    found: bool
    patch: str


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best policy's expectations.

    Attributes:
        total: of the reward that is maximised.
        submitted: share of episodes that submit.
        passed: share that submit the right patch.
        calls: well-formed calls an episode.
    """

    total: float
    submitted: float
    passed: float
    calls: float


def optimum(arm: Arm, places: int, longest: int) -> Optimum:
    """The best that can be done, and what doing it looks like; ties go to submitting, then to fewer calls.

    Args:
        arm: reward and limits.
        places: where the fault can be.
        longest: the most turns.
    """
    limits = range(arm.shortest, longest + 1)

    def worth(outcome: float, calls: int) -> float:
        open_gate = arm.gate is None or outcome >= arm.gate
        return outcome + (arm.farm * calls if open_gate else 0.0)

    def cut_off(turn: int) -> float:
        """Chance that the limit is `turn`, given that it is not below."""
        return 1 / sum(limit >= turn for limit in limits) if turn in limits else 0.0

    @cache
    def best(turn: int, belief: Belief, calls: int) -> Optimum:
        """From the start of a turn (from 1)."""
        options = [_mean([(p, Optimum(worth(o, calls), 1.0, float(o == OUTCOMES[-1]), float(calls)))
                          for p, o in _outcomes(belief, places)])]  # fmt: skip
        stop = cut_off(turn)
        options.append(_goes_on(turn, stop, belief, calls))  # a malformed call
        for after in _calls(belief, places):
            options.append(_mean([(p, _goes_on(turn, stop, then, calls + 1)) for p, then in after]))
        return max(options, key=lambda found: (round(found.total, 12), found.submitted, -found.calls))

    def _goes_on(turn: int, stop: float, belief: Belief, calls: int) -> Optimum:
        ended = Optimum(worth(OUTCOMES[0], calls), 0.0, 0.0, float(calls))
        if stop == 1.0:
            return ended
        return _mean([(stop, ended), (1 - stop, best(turn + 1, belief, calls))])

    return best(1, Belief(0, False, "none"), 0)


def _mean(parts: list[tuple[float, Optimum]]) -> Optimum:
    return Optimum(*(sum(p * getattr(o, name) for p, o in parts) for name in Optimum.__slots__))


def _outcomes(belief: Belief, places: int) -> list[tuple[float, float]]:
    none, empty, wrong, right = OUTCOMES
    del none
    if belief.patch == "open":
        chance = 1 / (places - belief.clean)
        return [(chance, right), (1 - chance, wrong)]
    return [(1.0, {"none": empty, "wrong": wrong, "right": right}[belief.patch])]


def _calls(belief: Belief, places: int) -> Iterator[list[tuple[float, Belief]]]:
    """Where each kind of well-formed call leads, with which chance."""
    clean, found, patch = belief
    unknown = 0 if found else places - clean
    yield [(1.0, belief)]  # a look at what is known, or the same edit again
    if found:
        yield [(1.0, Belief(clean, True, "right"))]
    if found or clean:
        yield [(1.0, Belief(clean, found, "wrong"))]
    if not unknown:
        return
    yield [(1.0, Belief(clean, False, "open"))]
    hit = 1 / unknown
    if patch == "open":  # a look at the patched place
        yield [(hit, Belief(clean, True, "right")), (1 - hit, Belief(clean + 1, False, "wrong"))]
    if unknown > (patch == "open"):  # a look at another one
        elsewhere = "wrong" if patch == "open" else patch
        yield [(hit, Belief(clean, True, elsewhere)), (1 - hit, Belief(clean + 1, False, patch))]
