"""One gate for every KV head behind layer 0, of one of three kinds. Gates live on the CPU in float32: they are few."""

from __future__ import annotations

from typing import Literal

import torch

from lychee_sgl.heads.train.distributions import Direct, GateDistribution, HardConcrete, HardKuma

GateKind = Literal["hardkuma", "hardconcrete", "l1"]
GATE_KINDS: tuple[GateKind, ...] = ("hardkuma", "hardconcrete", "l1")

BOUNDS = {"log_a": (-4.0, 1.0), "log_b": (-2.0, 4.0), "log_alpha": (-6.0, 6.0), "value": (0.0, 1.0)}
"""Parameters stay in here, where a gate has long decided but the count still has a derivative that can undo it."""


class Gates:
    """Gates of a model; layer 0 has none and counts as on.

    Attributes:
        kind: the distribution.
        parameters: what is trained, by name, each [L - 1, H].
    """

    def __init__(self, kind: GateKind, layers: int, heads: int) -> None:
        if kind not in GATE_KINDS:
            raise ValueError(f"gate is {kind!r}; allowed: {', '.join(GATE_KINDS)}")
        if layers < 2:
            raise ValueError(f"the model has {layers} layers; allowed: 2 or more, layer 0 needs no gates")
        self.kind: GateKind = kind
        names = {"hardkuma": ("log_a", "log_b"), "hardconcrete": ("log_alpha",), "l1": ("value",)}[kind]
        start = 1.0 if kind == "l1" else 0.0
        self.parameters: dict[str, torch.Tensor] = {
            name: torch.full((layers - 1, heads), start, requires_grad=True) for name in names
        }
        self._first = torch.ones(1, heads)

    def distribution(self) -> GateDistribution:
        """The gates' distribution at the present parameters."""
        match self.kind:
            case "hardkuma":
                return HardKuma(self.parameters["log_a"].exp(), self.parameters["log_b"].exp())
            case "hardconcrete":
                return HardConcrete(self.parameters["log_alpha"])
            case "l1":
                return Direct(self.parameters["value"])

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw all gates `count` times: [count, L, H], 1 in layer 0."""
        shape = next(iter(self.parameters.values())).shape
        drawn = self.distribution().sample(torch.rand((count, *shape), generator=generator))
        return torch.cat((self._first.expand(count, 1, -1), drawn), dim=1)

    def mean(self) -> torch.Tensor:
        """E[z] of every head, [L, H] without gradient; 1 in layer 0."""
        with torch.no_grad():
            return torch.cat((self._first, self.distribution().mean()))

    def expected_count(self) -> torch.Tensor:
        """Expected number of heads that are not off, layer 0 included; differentiable."""
        return self.distribution().density().sum() + self._first.numel()

    def project(self) -> None:
        """Put parameters that a step has moved too far back to the border."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.clamp_(*BOUNDS[name])


def exact_top(mean: torch.Tensor, retrieval: int) -> torch.Tensor:
    """The `retrieval` heads with the largest gates, all of layer 0 first; ties go to the lower layer and head.

    Args:
        mean: [L, H], E[z] of every head.
        retrieval: heads to choose, layer 0 included.

    Returns:
        bool [L, H] with exactly `retrieval` heads.

    Raises:
        ValueError: fewer than layer 0 has, or more than there are.
    """
    layers, heads = mean.shape
    if not heads <= retrieval <= layers * heads:
        raise ValueError(f"retrieval heads is {retrieval}; allowed: {heads} (layer 0 alone) to {layers * heads} (all)")
    order = torch.argsort(-mean[1:].flatten(), stable=True)[: retrieval - heads]
    chosen = torch.zeros(layers * heads, dtype=torch.bool)
    chosen[:heads] = True
    chosen[order + heads] = True
    return chosen.view(layers, heads)
