"""Trains all runs of the experiment at once, each with a policy of its own, by group-relative policy gradient (GRPO).

Runs are the first dimension of every tensor: parameters, episodes, gradients. They share nothing but the noise of their
seed, so the arms of one seed meet the same tasks and the same draws. One gradient step follows each batch of episodes,
so GRPO's ratio is 1 and nothing is clipped; there is no reference policy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from lychee_sgl.rewards.experiment.world import Episodes
from lychee_sgl.rewards.gated import STD_EPS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lychee_sgl.rewards.experiment.settings import Arm, Settings

MEASURED = ("total", "outcome", "submitted", "passed", "calls")
"""What is kept of every update, a mean over its episodes each."""

_LONGEST_GRADIENT = 1.0


def _gumbel(uniform: torch.Tensor) -> torch.Tensor:
    """Noise that makes the largest sum a draw from the softmax."""
    return -torch.log(-torch.log(uniform.clamp(1e-7, 1 - 1e-7)))


class Learners:
    """Policies of one hidden layer, one for each arm and seed; runs are arms times seeds, an arm's seeds together."""

    def __init__(self, settings: Settings, arms: Sequence[Arm]) -> None:
        """Draws the policies.

        Args:
            settings: of the experiment.
            arms: what is trained.
        """
        self.settings, self.arms = settings, tuple(arms)
        self.actions = 2 * settings.places + 1 + settings.noise
        features = 3 * settings.places + settings.places + 1 + settings.longest
        self._noise = [torch.Generator().manual_seed(7_919 * seed + 1) for seed in range(settings.seeds)]
        shapes = ((features, settings.width), (1, settings.width), (settings.width, self.actions), (1, self.actions))
        self.parameters = []
        for rows, columns in shapes:
            scale = 0.0 if rows == 1 else 1 / math.sqrt(rows)
            drawn = self._drawn(lambda g, r=rows, c=columns: torch.randn(r, c, generator=g))  # type: ignore[misc]
            self.parameters.append((scale * drawn).requires_grad_())
        self._adam = torch.optim.Adam(self.parameters, lr=settings.rate)
        seeds = settings.seeds
        self._farm = torch.tensor([arm.farm for arm in arms]).repeat_interleave(seeds).unsqueeze(1)
        gates = [-math.inf if arm.gate is None else arm.gate for arm in arms]
        self._gate = torch.tensor(gates).repeat_interleave(seeds).unsqueeze(1)
        self._warm = torch.tensor([arm.warm for arm in arms]).repeat_interleave(seeds).unsqueeze(1)
        self.done = 0
        self._shortest = torch.tensor([arm.shortest for arm in arms]).repeat_interleave(seeds).unsqueeze(1)

    def update(self) -> torch.Tensor:
        """Play a batch, take a step of the optimiser.

        Returns:
            What `MEASURED` names, float32 [R, 5], of the batch that was played.
        """
        with torch.no_grad():
            episodes, seen, taken, alive = self._play()
            total = self.totals(episodes)
            groups = total.unflatten(1, (self.settings.tasks, self.settings.group))
            unit = groups.std(-1, keepdim=True) + STD_EPS
            advantage = ((groups - groups.mean(-1, keepdim=True)) / unit).flatten(1)
        logits = self._logits(seen.flatten(1, 2)).unflatten(1, seen.shape[1:3])
        said = torch.log_softmax(logits, -1)
        chosen = said.gather(-1, taken.unsqueeze(-1)).squeeze(-1)
        gain = advantage.unsqueeze(1) * chosen
        if self.settings.entropy:
            gain = gain - self.settings.entropy * (said.exp() * said).sum(-1)
        loss = -(gain * alive).sum((1, 2)) / alive.shape[2] / alive.shape[1]
        self._adam.zero_grad()
        loss.sum().backward()
        self._clip()
        self._adam.step()
        self.done += 1
        passed = (episodes.outcome == 1.0).float()
        told = (total, episodes.outcome, episodes.submitted.float(), passed, episodes.calls)
        return torch.stack([value.mean(1) for value in told], -1)

    def totals(self, episodes: Episodes) -> torch.Tensor:
        """What `Arm.chain` makes of episodes, for all runs at once. float32 [R, B]."""
        opened = (episodes.outcome >= self._gate) & (self.done >= self._warm)
        return episodes.outcome + torch.where(opened, self._farm * episodes.calls, 0.0)

    def state(self) -> dict[str, Any]:
        """Everything that the next update follows from."""
        return {
            "done": self.done,
            "parameters": [parameter.detach() for parameter in self.parameters],
            "adam": self._adam.state_dict(),
            "noise": [generator.get_state() for generator in self._noise],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same settings: the next update has the same bits."""
        self.done = state["done"]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self._adam.load_state_dict(state["adam"])
        for generator, noise in zip(self._noise, state["noise"], strict=True):
            generator.set_state(noise)

    def _play(self) -> tuple[Episodes, torch.Tensor, torch.Tensor, torch.Tensor]:
        """A batch of episodes; what was seen [R, T, B, F], done [R, T, B], and by whom was alive [R, T, B]."""
        settings, count = self.settings, self.settings.tasks * self.settings.group
        fault = self._drawn(lambda g: torch.randint(settings.places, (settings.tasks,), generator=g))
        part = self._drawn(lambda g: torch.rand(count, generator=g))
        span = settings.longest - self._shortest + 1
        limit = self._shortest + (part * span).long().clamp(max=span - 1)
        episodes = Episodes.begin(fault.repeat_interleave(settings.group, 1), limit, settings.places)
        seen, taken, alive = [], [], []
        for _ in range(settings.longest):
            seen.append(episodes.observe(settings.longest))
            alive.append(episodes.alive)
            gumbel = self._drawn(lambda g: _gumbel(torch.rand(count, self.actions, generator=g)))
            taken.append((self._logits(seen[-1]) + gumbel).argmax(-1))
            episodes.step(taken[-1])
        return episodes, torch.stack(seen, 1), torch.stack(taken, 1), torch.stack(alive, 1)

    def _logits(self, seen: torch.Tensor) -> torch.Tensor:
        first, bias, second, last = self.parameters
        hidden = torch.tanh(torch.baddbmm(bias, seen, first))
        return torch.baddbmm(last, hidden, second)

    def _drawn(self, draw: Callable[[torch.Generator], torch.Tensor]) -> torch.Tensor:
        """One draw of each seed [R, ...], the same for every arm."""
        drawn = torch.stack([draw(generator) for generator in self._noise])
        return drawn.repeat(len(self.arms), *([1] * (drawn.dim() - 1)))

    def _clip(self) -> None:
        """Bound each run's gradient by itself."""
        square = sum(p.grad.square().sum((1, 2)) for p in self.parameters if p.grad is not None)
        assert isinstance(square, torch.Tensor)
        factor = (_LONGEST_GRADIENT / (square.sqrt() + 1e-12)).clamp(max=1.0)
        for parameter in self.parameters:
            assert parameter.grad is not None
            parameter.grad *= factor.view(-1, 1, 1)
