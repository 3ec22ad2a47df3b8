"""Environments of several turns: the memory loop, and the repair of a small repository."""

from lychee_sgl.rewards.environments.code_repair import CodeRepair, RepairTask, RepairTurn, repair_rewards
from lychee_sgl.rewards.environments.memory_loop import MemoryLoop, MemoryTask, MemoryTurn, memory_rewards
from lychee_sgl.rewards.environments.sandbox import Isolation, Limits, Sandbox, SandboxUnavailable

__all__ = [
    "CodeRepair",
    "Isolation",
    "Limits",
    "MemoryLoop",
    "MemoryTask",
    "MemoryTurn",
    "RepairTask",
    "RepairTurn",
    "Sandbox",
    "SandboxUnavailable",
    "memory_rewards",
    "repair_rewards",
]
