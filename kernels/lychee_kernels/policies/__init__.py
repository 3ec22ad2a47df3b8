"""Rival selection policies: a decode layer whose tokens are chosen another way (DESIGN.md 11.1)."""

from lychee_kernels.policies.api import Policy, PolicyRows, policy_decode

__all__ = ["Policy", "PolicyRows", "policy_decode"]
