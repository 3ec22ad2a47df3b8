"""Closed forms of the gates' distributions against Monte Carlo, finite differences and values by hand."""

import math

import pytest
import torch

from lychee_sgl.heads.train.distributions import HIGH, LOW, Direct, HardConcrete, HardKuma

PAIRS = ((1.0, 1.0), (0.5, 0.5), (0.3, 0.9), (2.0, 5.0), (0.2, 3.0), (4.0, 0.4))
DRAWS = 400_000


def kuma(a: float, b: float) -> HardKuma:
    return HardKuma(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))


def concrete(alpha: float) -> HardConcrete:
    return HardConcrete(torch.tensor(alpha, dtype=torch.float64))


def uniform(count: int = DRAWS) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_the_uniform_case_by_hand() -> None:
    gate = kuma(1.0, 1.0)
    assert float(gate.zero()) == pytest.approx(1 / 12)
    assert float(gate.one()) == pytest.approx(1 / 12)
    assert float(gate.density()) == pytest.approx(11 / 12)
    assert float(gate.mean()) == pytest.approx(0.5)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_the_papers_formulas(a: float, b: float) -> None:
    gate = kuma(a, b)
    assert float(gate.zero()) == pytest.approx(1 - (1 - (1 / 12) ** a) ** b)
    assert float(gate.one()) == pytest.approx((1 - (11 / 12) ** a) ** b)
    assert float(gate.density()) == pytest.approx((1 - (1 / 12) ** a) ** b)
    # E[s] = b Beta(1 + 1/a, b), s before stretching
    beta = math.exp(math.lgamma(1 + 1 / a) + math.lgamma(b) - math.lgamma(1 + 1 / a + b))
    assert float(gate.quantile(uniform()).mean()) == pytest.approx(b * beta, abs=3e-3)


@pytest.mark.parametrize("gate", [*(kuma(a, b) for a, b in PAIRS), *(concrete(x) for x in (-2.0, 0.0, 0.7, 3.0))])
def test_closed_forms_against_monte_carlo(gate: HardKuma | HardConcrete) -> None:
    drawn = gate.sample(uniform())
    assert float(drawn.min()) >= 0.0
    assert float(drawn.max()) <= 1.0
    error = 4 * 0.5 / math.sqrt(DRAWS)  # four standard errors of a share at the most
    assert float((drawn == 0).double().mean()) == pytest.approx(float(gate.zero()), abs=error)
    assert float((drawn == 1).double().mean()) == pytest.approx(float(gate.one()), abs=error)
    assert float((drawn != 0).double().mean()) == pytest.approx(float(gate.density()), abs=error)
    assert float(drawn.mean()) == pytest.approx(float(gate.mean()), abs=error)
    assert float((drawn > 0.25).double().mean()) == pytest.approx(float(gate.survival(0.25)), abs=error)


def test_hardconcrete_by_hand() -> None:
    # P(z != 0) = sigmoid(log_alpha - temperature * log(-LOW / HIGH))
    wanted = 1 / (1 + math.exp(-(0.7 - 2 / 3 * math.log(-LOW / HIGH))))
    assert float(concrete(0.7).density()) == pytest.approx(wanted)
    assert float(concrete(0.0).mean()) == pytest.approx(0.5)


def test_gradients_are_those_of_finite_differences() -> None:
    noise = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64)

    def every(log_a: torch.Tensor, log_b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gate = HardKuma(log_a.exp(), log_b.exp())
        return gate.zero(), gate.one(), gate.density(), gate.mean(), gate.sample(noise[:, None])

    def every_concrete(alpha: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gate = HardConcrete(alpha)
        return gate.zero(), gate.one(), gate.density(), gate.mean(), gate.sample(noise[:, None])

    points = [torch.tensor([0.0, -0.7, 0.4, 1.2], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(every, points)
    assert torch.autograd.gradcheck(every_concrete, points[:1])


@pytest.mark.parametrize(("log_a", "log_b"), [(-6.0, -6.0), (-6.0, 6.0), (6.0, -6.0), (6.0, 6.0)])
def test_extreme_gates_stay_finite(log_a: float, log_b: float) -> None:
    a, b = torch.tensor(log_a, requires_grad=True), torch.tensor(log_b, requires_grad=True)
    gate = HardKuma(a.exp(), b.exp())
    drawn = gate.sample(torch.tensor([0.0, 1e-6, 0.5, 1.0]))
    (drawn.sum() + gate.mean() + gate.density()).backward()
    assert torch.isfinite(drawn).all()
    assert 0.0 <= float(gate.mean().detach()) <= 1.0 + 1e-6
    assert a.grad is not None
    assert b.grad is not None
    assert torch.isfinite(a.grad)
    assert torch.isfinite(b.grad)


def test_a_direct_gate_is_its_number() -> None:
    gate = Direct(torch.tensor([-0.2, 0.4, 1.3]))
    assert gate.sample(torch.rand(2, 3)).tolist() == [[0.0, pytest.approx(0.4), 1.0]] * 2
    assert torch.equal(gate.mean(), gate.density())
