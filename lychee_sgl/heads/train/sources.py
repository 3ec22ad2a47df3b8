"""Whose set a sparse head reads, given which heads retrieve: the chain of the deployed plan, and its derivative.

Every head has an order of preference over the heads of earlier layers; its root is the first in that order that
retrieves. Three policies:

* `same-index`: the same index, nearest layer first. That is the plan format's default chain.
* `measured`: by measured gain, largest first. That is how a greedy cover assigns sources.
* `learned`: by a score that is trained with the gates.

While training, roles are the gates' samples cut at 1/2, so every step runs a set that some deployed plan would run. The
cut has no derivative; backwards it counts as the identity (straight-through), and a gate is told what would change if
its head became, or ceased to be, the root of others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from lychee_sgl.heads.plan import Head

SourceKind = Literal["same-index", "measured", "learned"]
SOURCE_KINDS: tuple[SourceKind, ...] = ("same-index", "measured", "learned")

_UNWANTED = -1e30


def hard_roles(gates: torch.Tensor) -> torch.Tensor:
    """1 where a gate is above one half, else 0; its derivative is taken to be 1."""
    return (gates > 0.5).to(gates.dtype) + gates - gates.detach()


class Sources:
    """The sources of a model's N = layers * heads KV heads, head (l, h) at l * heads + h.

    Attributes:
        kind: the policy.
        scores: [N, N], how much a head (first index) wants a source (second); larger is better.
    """

    def __init__(self, kind: SourceKind, layers: int, heads: int, gain: torch.Tensor | None = None) -> None:
        """Makes the policy.

        Args:
            kind: which.
            layers: of the model.
            heads: KV heads of a layer.
            gain: [N, N], `gain[a, b]` is what a's set is worth to b; `measured` and `learned` need it, the latter to
                start from.

        Raises:
            ValueError: unknown kind, or a gain that is missing or has the wrong shape.
        """
        if kind not in SOURCE_KINDS:
            raise ValueError(f"sources is {kind!r}; allowed: {', '.join(SOURCE_KINDS)}")
        total = layers * heads
        if kind != "same-index" and (gain is None or gain.shape != (total, total)):
            shape = None if gain is None else tuple(gain.shape)
            raise ValueError(f"gain has shape {shape}; allowed: ({total}, {total}) for {kind} sources")
        self.kind: SourceKind = kind
        self.layers, self.heads = layers, heads
        layer = torch.arange(total) // heads
        self._earlier = layer[None, :] < layer[:, None]  # [head, source]
        if gain is None or kind == "same-index":
            index = torch.arange(total) % heads
            nearness = (layer[None, :] - layer[:, None]).float()
            scores = nearness.masked_fill(index[None, :] != index[:, None], _UNWANTED)
        elif kind == "measured":
            scores = gain.T.float()
        else:
            best = (gain * self._earlier.T).amax(0).clamp(min=1e-30)
            scores = (gain / best).T.float().clamp(min=0.0).add(0.02).log()  # odds against the best source there is
        self.scores = scores.masked_fill(~self._earlier, 2.0 * _UNWANTED)
        if kind == "learned":
            self.scores.requires_grad_(True)

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """What is trained, by name."""
        return {"scores": self.scores} if self.kind == "learned" else {}

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Gumbel noise for scores, [count, N, N]: a learned choice tries its alternatives in proportion."""
        drawn = torch.rand((count, *self.scores.shape), generator=generator).clamp(1e-6, 1.0 - 1e-6)
        return -(-drawn.log()).log()

    def roots(self, roles: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """The root that every head has as a sparse head.

        Args:
            roles: bool [B, N], who retrieves; all heads of layer 0 do.
            noise: [B, N, N] added to the scores, or None.

        Returns:
            int64 [B, N]; heads of layer 0, which have no source, name themselves.
        """
        wanted = self.scores.detach() if noise is None else self.scores.detach() + noise
        wanted = wanted.expand(roles.shape[0], -1, -1)
        usable = roles[:, None, :] & self._earlier
        best = wanted.masked_fill(~usable, float("-inf")).amax(-1, keepdim=True)
        candidates = usable & (wanted == best)  # ties go to the lower head, as in a greedy cover
        index = torch.arange(self.scores.shape[0])
        first = torch.where(candidates, index, index.numel()).amin(-1)
        return torch.where(self._earlier.any(-1), first, index)

    def weights(self, gates: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """How much each head reads each source: the differentiable face of `roots`.

        Args:
            gates: [B, N], samples in [0, 1].
            noise: as given to `roots`.

        Returns:
            [B, N, N]. For a fixed order, the chance that a source is the first that retrieves, evaluated at the cut
            roles: 1 at the root, 0 elsewhere, with the derivative of the product. For learned scores a softmax over
            the sources, each weighed by its gate.
        """
        if self.kind == "learned":
            scores = self.scores if noise is None else self.scores + noise
            odds = scores + (gates[:, None, :] + 1e-6).log()
            # finite instead of -inf: layer 0 has no source at all, and its softmax must not turn into NaN
            return odds.masked_fill(~self._earlier, _UNWANTED).softmax(-1) * self._earlier
        roles = hard_roles(gates)
        order = torch.argsort(-self.scores, dim=-1, stable=True)  # [N, N], best source first
        usable = self._earlier & (self.scores > _UNWANTED / 2)
        ranked = roles[:, order] * usable.gather(1, order)
        before = (1.0 - ranked).cumprod(-1)
        unclaimed = torch.cat((torch.ones_like(before[..., :1]), before[..., :-1]), dim=-1)
        return torch.zeros_like(ranked).scatter(-1, order.expand_as(ranked), ranked * unclaimed)

    def export(self, roles: torch.Tensor) -> dict[Head, Head]:
        """Sources of a plan with these roles.

        Args:
            roles: bool [L, H].

        Returns:
            For every sparse head its root; nothing for `same-index`, which the plan format knows by itself.
        """
        if self.kind == "same-index":
            return {}
        roots = self.roots(roles.flatten()[None])[0].tolist()
        sparse = (~roles.flatten()).nonzero().flatten().tolist()
        return {divmod(head, self.heads): divmod(roots[head], self.heads) for head in sparse}
