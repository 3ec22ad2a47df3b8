"""Gate distributions on [0, 1] with mass on both ends, and their closed forms.

A variable s in (0, 1) is stretched to (LOW, HIGH) and clamped: what falls below 0 becomes exactly 0, what falls above 1
exactly 1. So a gate can be off or on, not only nearly so, and both probabilities are differentiable.

    z = clamp(s (HIGH - LOW) + LOW, 0, 1)        P(z > t) = 1 - F((t - LOW) / (HIGH - LOW)),  0 <= t < 1

HardKuma takes s from Kumaraswamy's distribution, F(x) = 1 - (1 - x^a)^b; HardConcrete takes a logistic variable through
a sigmoid. `Direct` has no noise: the number itself is the gate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

LOW, HIGH = -0.1, 1.1
"""Ends of the stretched interval."""

TEMPERATURE = 2.0 / 3.0
"""Of HardConcrete's sigmoid."""

EDGE = 1e-6
"""Uniform noise is kept this far from 0 and 1."""

_NODES = 257
"""Odd: points of Simpson's rule for E[z]."""


class GateDistribution(ABC):
    """What training needs of a gate; every tensor has the shape of the parameters."""

    @abstractmethod
    def sample(self, uniform: torch.Tensor) -> torch.Tensor:
        """Gates for uniform noise in (0, 1), whose last dimensions are those of the parameters; differentiable."""

    @abstractmethod
    def density(self) -> torch.Tensor:
        """P(z != 0): how likely a head costs anything."""

    @abstractmethod
    def mean(self) -> torch.Tensor:
        """E[z]."""


class _Stretched(GateDistribution):
    """A stretched and clamped variable, given its tail 1 - F and its quantiles."""

    @abstractmethod
    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """P(s > x) before stretching, for x in (0, 1)."""

    @abstractmethod
    def quantile(self, uniform: torch.Tensor) -> torch.Tensor:
        """S for uniform noise."""

    def sample(self, uniform: torch.Tensor) -> torch.Tensor:
        """Stretched and clamped quantiles."""
        stretched = self.quantile(uniform.clamp(EDGE, 1.0 - EDGE)) * (HIGH - LOW) + LOW
        return stretched.clamp(0.0, 1.0)

    def survival(self, threshold: float) -> torch.Tensor:
        """P(z > threshold) for a threshold in [0, 1); the limit at 1 is P(z = 1)."""
        return self.tail(self._one() * ((threshold - LOW) / (HIGH - LOW)))

    def zero(self) -> torch.Tensor:
        """P(z = 0)."""
        return 1.0 - self.survival(0.0)

    def one(self) -> torch.Tensor:
        """P(z = 1)."""
        return self.survival(1.0)

    def density(self) -> torch.Tensor:
        """P(z != 0)."""
        return self.survival(0.0)

    def mean(self) -> torch.Tensor:
        """E[z] as the integral of P(z > t) over [0, 1], by Simpson's rule."""
        step = 1.0 / (_NODES - 1)
        total = self.survival(0.0) + self.survival(1.0)
        for node in range(1, _NODES - 1):
            total = total + (4.0 if node % 2 else 2.0) * self.survival(node * step)
        return total * step / 3.0

    @abstractmethod
    def _one(self) -> torch.Tensor:
        """A 1 of the parameters' dtype and device."""


@dataclass(frozen=True, slots=True)
class HardKuma(_Stretched):
    """Kumaraswamy's distribution, stretched; a and b above 0. a = b = 1 is the uniform distribution."""

    a: torch.Tensor
    b: torch.Tensor

    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """P(s > x)."""
        # (1 - x^a)^b through logarithms: x^a is close to 1 for small a
        return (self.b * torch.log(-torch.expm1(self.a * x.log()))).exp()

    def quantile(self, uniform: torch.Tensor) -> torch.Tensor:
        """The inverse of P(s <= x)."""
        return (torch.log(-torch.expm1(uniform.log() / self.b)) / self.a).exp()

    def _one(self) -> torch.Tensor:
        return torch.ones((), dtype=self.a.dtype, device=self.a.device)


@dataclass(frozen=True, slots=True)
class HardConcrete(_Stretched):
    """A logistic variable around `log_alpha` through a sigmoid of temperature 2/3, stretched."""

    log_alpha: torch.Tensor

    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """P(s > x)."""
        return torch.sigmoid(self.log_alpha - TEMPERATURE * torch.logit(x))

    def quantile(self, uniform: torch.Tensor) -> torch.Tensor:
        """The inverse of P(s <= x)."""
        return torch.sigmoid((torch.logit(uniform) + self.log_alpha) / TEMPERATURE)

    def _one(self) -> torch.Tensor:
        return torch.ones((), dtype=self.log_alpha.dtype, device=self.log_alpha.device)


@dataclass(frozen=True, slots=True)
class Direct(GateDistribution):
    """A gate optimised as it is, with its own size as its cost (an L1 penalty)."""

    value: torch.Tensor

    def sample(self, uniform: torch.Tensor) -> torch.Tensor:
        """The number itself, whatever the noise."""
        return self.value.clamp(0.0, 1.0).expand(uniform.shape)

    def density(self) -> torch.Tensor:
        """The number itself."""
        return self.value.clamp(0.0, 1.0)

    def mean(self) -> torch.Tensor:
        """The number itself."""
        return self.value.clamp(0.0, 1.0)
