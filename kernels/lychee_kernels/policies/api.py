"""`policy_decode`: what a policy is, signature and validation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, Protocol

from lychee_kernels.checks import check_shapes
from lychee_kernels.hybrid_decode import HybridDecode, hybrid_decode
from lychee_kernels.layout import Mode

if TYPE_CHECKING:
    import torch

    from lychee_kernels.layout import DecodeRows, LayerHeads, TokenSets

BLOCK = 64
"""Tokens that `block` chooses at once."""
PAGE = 16
"""Tokens that `quest` describes by one minimum and one maximum."""
MODES = (Mode.TOPK, Mode.RATIO)
"""Modes whose sets have a size of their own, whatever the scores are."""


class Policy(IntEnum):
    """How a row's sets are chosen; `PLAN` is hybrid-head decoding itself."""

    PLAN = 0
    BLOCK = 1
    WINDOW = 2
    RANDOM = 3
    QUEST = 4
    ORACLE = 5

    @property
    def by_plan(self) -> bool:
        """Whether the plan's retrieval heads choose; else every head does for itself."""
        return self in (Policy.PLAN, Policy.BLOCK)

    @property
    def realisable(self) -> bool:
        """Whether a decoder could have the sets for what `attended` counts."""
        return self is not Policy.ORACLE

    @property
    def dense_layers(self) -> int:
        """First layers in which every head reads everything, whatever a plan says."""
        return 2 if self is Policy.QUEST else 0

    def beside(self, length: int) -> int:
        """Entries that a sparse head has to read beside its set, to choose it over `length` tokens."""
        # a page's minimum and maximum are as long as one entry's key and value
        return -(-length // PAGE) if self is Policy.QUEST else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRows:
    """What the rows of one layer have in common, and their seeds.

    Attributes:
        policy: of all the rows; not `PLAN`.
        layer: which layer of the model.
        seeds: one number from 0 on for each row, for `random`.
        first_head: index in the model of the layer's first KV head here.
    """

    policy: Policy
    layer: int
    seeds: tuple[int, ...]
    first_head: int = 0


class Attend(Protocol):
    """An implementation of `hybrid_decode`."""

    def __call__(
        self,
        q: torch.Tensor,
        k_buffer: torch.Tensor,
        v_buffer: torch.Tensor,
        kv_indptr: torch.Tensor,
        kv_indices: torch.Tensor,
        heads: LayerHeads,
        sets: TokenSets,
        rows: DecodeRows,
        sm_scale: float,
        /,
    ) -> HybridDecode:
        """See `lychee_kernels.hybrid_decode`."""


def policy_decode(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    heads: LayerHeads,
    sets: TokenSets,
    rows: DecodeRows,
    policy: PolicyRows,
    sm_scale: float,
    *,
    attend: Attend = hybrid_decode,
    impl: Literal["reference", "batched"] = "reference",
) -> HybridDecode:
    """Decodes one layer for rows that all have one policy; `hybrid_decode` but for who chooses, and by which score.

    Args:
        q: [B, H*G, D].
        k_buffer: [slots, H, D], keys of this layer, the current token's included.
        v_buffer: [slots, H, D].
        kv_indptr: [B+1]; the slot of position p of row b is `kv_indices[kv_indptr[b] + p]`.
        kv_indices: [sum of lengths].
        heads: roles of this layer, for policies in which the plan's heads choose.
        sets: the step's sets, [B, R, C]; written by `block`, not touched by policies in which every head chooses.
        rows: budgets, modes (`topk` or `ratio`), which rows are dense or audited.
        policy: which policy, where, and the rows' seeds.
        sm_scale: factor of the scores, usually D ** -0.5.
        attend: what attends over sets that have been chosen; choosing itself is torch, on any device.
        impl: the definition, row by row, or the same for all rows at once, which attends by itself.

    Returns:
        As `hybrid_decode`. `attended` counts what the policy has to read beside its sets, too.

    Raises:
        ValueError: shapes disagree, the policy is `PLAN`, a row's mode has no size of its own, or `impl` is unknown.
    """
    if policy.policy is Policy.PLAN:
        raise ValueError("policy is PLAN, allowed: any other; `hybrid_decode` decodes by plan")
    sizes = check_shapes({"q": (q, ("B", "HG", "D")), "rows.mode": (rows.mode, ("B",))})
    if len(policy.seeds) != sizes["B"]:
        raise ValueError(f"seeds has {len(policy.seeds)} numbers, expected one for each of {sizes['B']} rows")
    modes = sorted({Mode(mode) for mode in rows.mode.tolist()} - {*MODES})
    if modes:
        raise ValueError(f"mode is {modes[0].name.lower()}, allowed with a policy: topk, ratio")
    from lychee_kernels.policies import batched, reference

    asked = (q, k_buffer, v_buffer, kv_indptr, kv_indices, heads, sets, rows, policy, sm_scale)
    match impl:
        case "reference":
            return reference.policy_decode(*asked, attend=attend)
        case "batched":
            return batched.policy_decode(*asked)
        case _:
            raise ValueError(f"impl is {impl!r}, allowed: 'reference', 'batched'")
