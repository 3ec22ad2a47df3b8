"""The two passes of a training step over an answer's tokens: the dense teacher, and the gated student.

A gated head mixes what it would give as a retrieval head and as a sparse head, `z A_R + (1 - z) A_S`. The sparse branch
reads the set of the head's root under this step's roles, at the deployed budget, chosen by each token for itself as in
a decode step; so wherever z is 0 or 1, the student is the deployed model.

Shape legend: as in `lychee_sgl.heads.rows`, and N = L * H.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from lychee_kernels.select_tokens import select_mask
from lychee_sgl.heads.rows import masked_scores, weighted_values

if TYPE_CHECKING:
    from lychee_sgl.heads.hybrid_hf import Prefix

ChainKind = Literal["deployed", "previous"]
CHAIN_KINDS: tuple[ChainKind, ...] = ("deployed", "previous")

LEAST_MASS = 0.1
"""Attention mass that a set is taken to hold at least, in the derivative of what is handed down."""

_AT_ONCE = 1 << 27
"""Entries of sets that the backward pass turns into numbers at a time: half a gigabyte."""


@dataclass(slots=True, kw_only=True)
class DenseAnswer:
    """The teacher: every head attends to everything."""

    prefix: Prefix

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `RowAttention`."""
        scores, _ = masked_scores(query, self.prefix.keys[layer], key, scale)
        return weighted_values(scores.softmax(-1), self.prefix.values[layer], value)


@dataclass(slots=True, kw_only=True)
class GatedAnswer:
    """The student.

    Attributes:
        prefix: the densely prefilled prompt.
        gates: [B, L, H], z of every row's draw.
        roots: int64 [B, N], whose set a head's sparse branch reads.
        weights: [B, N, N], `Sources.weights`: carries the derivative of what is handed down; None: it has none.
        budget: tokens in a set.
        sinks: first tokens always kept.
        recent: last tokens always kept.
        recompute: forget what a layer computed and compute it again in the backward pass: a third of the time more,
            for the memory of one layer instead of all.
    """

    prefix: Prefix
    gates: torch.Tensor
    roots: torch.Tensor
    weights: torch.Tensor | None
    budget: int
    sinks: int
    recent: int
    recompute: bool = False
    _sets: torch.Tensor | None = field(default=None, init=False)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `RowAttention`."""
        gates = self.gates[:, layer]
        heads = slice(layer * key.shape[1], (layer + 1) * key.shape[1])
        weights = None if self.weights is None else self.weights[:, heads]
        arguments = (layer, query, key, value, gates, weights, scale)
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._layer, *arguments, use_reentrant=False)
        return self._layer(*arguments)

    def _layer(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        gates: torch.Tensor,
        weights: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        scores, lengths = masked_scores(query, self.prefix.keys[layer], key, scale)
        dense = scores.detach().softmax(-1)
        chosen = select_mask(dense.mean(2), lengths, self.budget, sinks=self.sinks, recent=self.recent)
        sets = self._store(layer, chosen)
        if layer == 0:
            used = scores.softmax(-1)
        else:
            heads = key.shape[1]
            roots = self.roots[:, layer * heads : (layer + 1) * heads]
            used = mixed_attention(scores, dense, gates, Handed(sets=sets, roots=roots, earlier=layer * heads), weights)
        return weighted_values(used, self.prefix.values[layer], value)

    def _store(self, layer: int, chosen: torch.Tensor) -> torch.Tensor:
        """Keep a layer's sets [B, H, m, n] among all heads' [B, N, m, n]."""
        batch, heads, steps, context = chosen.shape
        if self._sets is None:
            total = self.prefix.keys.shape[0] * heads
            self._sets = torch.zeros(batch, total, steps, context, dtype=torch.bool, device=chosen.device)
        self._sets[:, layer * heads : (layer + 1) * heads] = chosen
        return self._sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """The sets that a layer's heads read as sparse heads.

    Attributes:
        sets: bool [B, N, m, n], filled for the first `earlier` heads. Later layers fill in the rest of this tensor.
        roots: int64 [B, H], each below `earlier`.
        earlier: heads of the layers before.
    """

    sets: torch.Tensor
    roots: torch.Tensor
    earlier: int

    def masks(self) -> torch.Tensor:
        """The roots' sets, bool [B, H, m, n]."""
        rows = torch.arange(len(self.roots), device=self.roots.device)[:, None]
        return self.sets[rows, self.roots]


def mixed_attention(
    scores: torch.Tensor,
    dense: torch.Tensor,
    gates: torch.Tensor,
    handed: Handed,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """`z P + (1 - z) Q`: dense attention P, and Q, attention to the set of the head's root alone.

    Backwards, a weight stands for how much its set is part of what was handed down. A position that came in with a
    weight dM would change Q by `dM P_i / mass * (1_i - Q)`, with the mass of P on the set. That is the derivative of
    `Q = P M / sum(P M)`; where the set holds next to nothing it would grow without bound, so the mass counts as at
    least `LEAST_MASS`.

    Args:
        scores: [B, H, G, m, n], -inf on what is not there yet.
        dense: their softmax, without gradient.
        gates: z, [B, H].
        handed: the sets.
        weights: [B, H, N] or None, for no derivative of what is handed down.

    Returns:
        [B, H, G, m, n], differentiable by scores, gates and weights.
    """
    return _MixedAttention.apply(scores, dense, gates, handed, weights)


class _MixedAttention(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        scores: torch.Tensor,
        dense: torch.Tensor,
        gates: torch.Tensor,
        handed: Handed,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        masks = handed.masks()[:, :, None]
        sparse = scores.masked_fill(~masks, float("-inf")).softmax(-1)
        ctx.save_for_backward(dense, sparse, gates)
        # The sets are not saved for backward: autograd would object to what later layers write into them.
        ctx.handed, ctx.weights = handed, None if weights is None else weights.shape
        z = gates[:, :, None, None, None]
        return z * dense + (1.0 - z) * sparse

    @staticmethod
    def backward(
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor, None, torch.Tensor, None, torch.Tensor | None]:
        (gradient,) = gradients
        dense, sparse, gates = ctx.saved_tensors
        z = gates[:, :, None, None, None]
        by_gates = (gradient * (dense - sparse)).sum((2, 3, 4))
        from_sparse = gradient - (gradient * sparse).sum(-1, keepdim=True)
        from_dense = gradient - (gradient * dense).sum(-1, keepdim=True)
        by_scores = z * dense * from_dense + (1.0 - z) * sparse * from_sparse
        by_weights = None
        if ctx.weights is not None:
            mass = (dense * ctx.handed.masks()[:, :, None]).sum(-1, keepdim=True).clamp(min=LEAST_MASS)
            by_mask = ((1.0 - z) * dense / mass * from_sparse).sum(2)  # [B, H, m, n]
            by_weights = gradient.new_zeros(ctx.weights)
            by_weights[..., : ctx.handed.earlier] = _over_sets(by_mask, ctx.handed)
        return by_scores, None, by_gates, None, by_weights


def _over_sets(by_mask: torch.Tensor, handed: Handed) -> torch.Tensor:
    """Sums of [B, H, m, n] over the positions of every earlier set: [B, H, earlier]."""
    flat = by_mask.flatten(2)
    sets = handed.sets[:, : handed.earlier].flatten(2)
    chunk = max(1, _AT_ONCE // max(1, sets.shape[0] * sets.shape[2]))
    return torch.cat([flat @ part.to(flat.dtype).transpose(1, 2) for part in sets.split(chunk, dim=1)], dim=-1)
