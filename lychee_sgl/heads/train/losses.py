"""The loss of a training step, and how its parts are weighed over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Objective = Literal["logits", "hidden"]
OBJECTIVES: tuple[Objective, ...] = ("logits", "hidden")


def distillation(
    objective: Objective, student: torch.Tensor, teacher: torch.Tensor, project: torch.Tensor
) -> torch.Tensor:
    """How far the student is from the teacher, mean over rows and tokens, in float32.

    Args:
        objective: `logits`: Kullback-Leibler divergence of the next token's distribution, teacher first. `hidden`: mean
            squared difference of the final normed hidden state.
        student: [B, m, hidden].
        teacher: [1, m, hidden].
        project: output projection, [vocabulary, hidden].
    """
    if objective == "hidden":
        return (student.float() - teacher.float()).square().mean()
    told = (teacher @ project.T).float().log_softmax(-1)
    said = (student @ project.T).float().log_softmax(-1)
    return (told.exp() * (told - said)).sum(-1).mean()


def rate_factor(step: int, steps: int, *, warmup: float, decay: float, floor: float = 0.1) -> float:
    """Share of the learning rate in force: rises over the first part, falls over the last, never below `floor`.

    Args:
        step: from 0.
        steps: of the whole training.
        warmup: share of the steps that rise.
        decay: share of the steps that fall.
        floor: least share.
    """
    rising = (step + 1) / (warmup * steps) if warmup > 0 else 1.0
    falling = (steps - step) / (decay * steps) if decay > 0 else 1.0
    return min(1.0, max(rising, floor), max(falling, floor))


def count_target(step: int, steps: int, *, start: float, end: int, ramp: float) -> float:
    """The expected count asked for at a step: from what it is at first, in a straight line, to the wanted number."""
    left = max(0.0, 1.0 - step / (ramp * steps)) if ramp > 0 else 0.0
    return end + (start - end) * left


@dataclass(slots=True)
class CountConstraint:
    """A two-sided constraint on the expected count, as an augmented Lagrangian.

    The violation is the difference to the target as a share of the heads that have gates. The multiplier follows it up
    and down, so too few heads are as wrong as too many; the square damps the swing.

    Attributes:
        heads: heads that have gates.
        rate: what the multiplier gains a step for a violation of 1.
        stiffness: weight of half the square.
        multiplier: the present price of a share of the heads.
    """

    heads: int
    rate: float = 1.0
    stiffness: float = 10.0
    multiplier: float = 0.0

    def penalty(self, count: torch.Tensor, target: float) -> torch.Tensor:
        """What the expected count costs; differentiable."""
        violation = (count - target) / self.heads
        return self.multiplier * violation + 0.5 * self.stiffness * violation.square()

    def update(self, count: float, target: float) -> None:
        """Let the multiplier follow the violation."""
        self.multiplier += self.rate * (count - target) / self.heads
