"""The experiment's world, many episodes at once: find a fault, patch it, submit.

One of `places` has the fault. A turn's action looks at a place, patches a place, submits, or is malformed (one of
`noise` actions that do nothing). Looks and patches are well-formed calls, each worth the farmable reward, however often
they are repeated. An episode ends with `submit`, or without an outcome at its limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lychee_sgl.rewards.experiment.settings import OUTCOMES

UNKNOWN, CLEAN, FAULTY = range(3)


@dataclass(slots=True)
class Episodes:
    """Episodes that are under way; every tensor begins with [R, B]: runs and episodes of a run.

    Attributes:
        fault: the faulty place, int64.
        limit: turns until it is cut off, int64.
        seen: what is known of each place, int64 [R, B, places].
        patch: the patched place plus 1, or 0, int64.
        turn: turns taken, the same for all that are alive.
        alive: bool.
        calls: well-formed calls so far, float32.
        outcome: float32.
        submitted: bool.
    """

    fault: torch.Tensor
    limit: torch.Tensor
    seen: torch.Tensor
    patch: torch.Tensor
    alive: torch.Tensor
    calls: torch.Tensor
    outcome: torch.Tensor
    submitted: torch.Tensor
    turn: int = 0

    @classmethod
    def begin(cls, fault: torch.Tensor, limit: torch.Tensor, places: int) -> Episodes:
        """Episodes before their first turn.

        Args:
            fault: int64 [R, B].
            limit: int64 [R, B].
            places: how many there are.
        """
        zero = torch.zeros_like(fault)
        return cls(
            fault=fault, limit=limit, seen=zero.unsqueeze(-1).expand(*fault.shape, places).clone(), patch=zero.clone(),
            alive=torch.ones_like(fault, dtype=torch.bool), calls=zero.float(), outcome=zero.float(),
            submitted=torch.zeros_like(fault, dtype=torch.bool),
        )  # fmt: skip

    def observe(self, longest: int) -> torch.Tensor:
        """What a policy sees: what is known of each place, the patched place, the turn. float32 [R, B, features]."""
        places = self.seen.shape[-1]
        turn = torch.full_like(self.patch, self.turn)
        one_hot = torch.nn.functional.one_hot
        parts = (one_hot(self.seen, 3).flatten(-2), one_hot(self.patch, places + 1), one_hot(turn, longest))
        return torch.cat(parts, -1).float()

    def step(self, action: torch.Tensor) -> None:
        """Take a turn.

        Args:
            action: int64 [R, B]: `places` looks, `places` patches, submit, then malformed ones; ignored where an
                episode has ended.
        """
        places = self.seen.shape[-1]
        look = self.alive & (action < places)
        patch = self.alive & (action >= places) & (action < 2 * places)
        submit = self.alive & (action == 2 * places)
        place = action % places
        told = torch.where(place == self.fault, FAULTY, CLEAN)
        at = torch.nn.functional.one_hot(place, places).bool() & look.unsqueeze(-1)
        self.seen = torch.where(at, told.unsqueeze(-1), self.seen)
        self.patch = torch.where(patch, place + 1, self.patch)
        self.calls = self.calls + (look | patch).float()
        _, empty, wrong, right = OUTCOMES
        patched = torch.where(self.patch == self.fault + 1, right, wrong)
        self.outcome = torch.where(submit, torch.where(self.patch == 0, empty, patched), self.outcome)
        self.submitted |= submit
        self.turn += 1
        self.alive = self.alive & ~submit & (self.limit > self.turn)
