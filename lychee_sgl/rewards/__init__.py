"""Gated rewards: lower ones count only where every higher one passes its gate (DESIGN.md section 14)."""

from lychee_sgl.rewards.environment import Environment, ResetNeeded, Step, Trajectory, rollout
from lychee_sgl.rewards.gated import Account, Gate, GatedRewards, Level, advantages, group_advantages

__all__ = [
    "Account",
    "Environment",
    "Gate",
    "GatedRewards",
    "Level",
    "ResetNeeded",
    "Step",
    "Trajectory",
    "advantages",
    "group_advantages",
    "rollout",
]
