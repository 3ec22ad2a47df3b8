"""Roots under drawn roles against the plan's own, and the derivative of what is handed down."""

import pytest
import torch

from lychee_sgl.heads.cover import greedy_cover
from lychee_sgl.heads.plan import HeadPlan, ModelShape
from lychee_sgl.heads.train.sources import SOURCE_KINDS, SourceKind, Sources, hard_roles

LAYERS, HEADS = 6, 3
TOTAL = LAYERS * HEADS
SHAPE = ModelShape("m", "LlamaForCausalLM", LAYERS, 6, HEADS, 8)


def gains(seed: int = 0) -> torch.Tensor:
    return torch.rand(TOTAL, TOTAL, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn_roles(count: int, seed: int = 1, share: float = 0.3) -> torch.Tensor:
    roles = torch.rand(count, TOTAL, generator=torch.Generator().manual_seed(seed)) < share
    roles[:, :HEADS] = True
    return roles


@pytest.mark.parametrize("kind", SOURCE_KINDS)
def test_roots_are_those_of_the_exported_plan(kind: SourceKind) -> None:
    sources = Sources(kind, LAYERS, HEADS, gains())
    roles = drawn_roles(40)
    roots = sources.roots(roles)
    for row in range(len(roles)):
        grid = roles[row].view(LAYERS, HEADS)
        letters = tuple("".join("R" if flag else "S" for flag in line) for line in grid.tolist())
        plan = HeadPlan("t", SHAPE, letters, sources.export(grid))
        for layer, head in plan.sparse_heads():
            assert plan.root(layer, head) == divmod(int(roots[row, layer * HEADS + head]), HEADS)


def test_same_index_by_hand() -> None:
    roles = torch.zeros(1, TOTAL, dtype=torch.bool)
    roles[0, :HEADS] = True
    roles[0, 2 * HEADS + 1] = True  # head 2.1
    roots = Sources("same-index", LAYERS, HEADS).roots(roles)[0].view(LAYERS, HEADS)
    assert roots[1].tolist() == [0, 1, 2]
    assert roots[2].tolist() == [0, 1, 2]  # a retrieval head, too, has a root: for the day it is sparse
    assert roots[5].tolist() == [0, 7, 2]


def test_measured_sources_are_a_covers() -> None:
    gain = gains(4)
    cover = greedy_cover(gain, layers=LAYERS, heads=HEADS, retrieval=7)
    roles = torch.tensor([[letter == "R" for letter in row] for row in cover.roles])
    assert Sources("measured", LAYERS, HEADS, gain).export(roles) == cover.sources


@pytest.mark.parametrize("kind", ["same-index", "measured"])
def test_weights_are_one_at_the_root(kind: SourceKind) -> None:
    sources = Sources(kind, LAYERS, HEADS, gains(2))
    gates = torch.rand(20, TOTAL, generator=torch.Generator().manual_seed(5))
    gates[:, :HEADS] = 1.0
    weights, roots = sources.weights(gates), sources.roots(gates > 0.5)
    for head in range(HEADS, TOTAL):
        assert torch.equal(weights[:, head].argmax(-1), roots[:, head])
    assert torch.equal(weights.sum(-1)[:, HEADS:], torch.ones(20, TOTAL - HEADS))
    assert float(weights[:, :HEADS].abs().sum()) == 0.0


def test_a_gate_hears_what_would_change_if_its_head_were_the_root() -> None:
    sources = Sources("same-index", 4, 1)
    gates = torch.tensor([[1.0, 0.25, 0.75, 0.125]], requires_grad=True)  # roots of head 3: head 2; then 1, then 0
    worth = torch.tensor([5.0, 3.0, 2.0, 0.0])
    (sources.weights(gates)[0, 3] * worth).sum().backward()
    # with roles (1, 0, 1, 0): w2 = z2, w1 = (1 - z2) z1, w0 = (1 - z2)(1 - z1) z0
    # d/dz2 = worth2 - worth of the next in line (head 0) = 2 - 5; heads behind the root have no say
    assert gates.grad is not None
    assert gates.grad[0].tolist() == pytest.approx([0.0, 0.0, -3.0, 0.0], abs=1e-6)


def test_learned_scores_and_gates_have_a_derivative() -> None:
    sources = Sources("learned", LAYERS, HEADS, gains(3))
    gates = torch.rand(2, TOTAL, generator=torch.Generator().manual_seed(6)).requires_grad_(True)
    noise = sources.noise(2, torch.Generator().manual_seed(7))
    weights = sources.weights(gates, noise)
    assert torch.allclose(weights.sum(-1)[:, HEADS:], torch.ones(2, TOTAL - HEADS))
    (weights * torch.rand(TOTAL)).sum().backward()
    assert gates.grad is not None
    assert sources.scores.grad is not None
    assert torch.isfinite(gates.grad).all()
    assert torch.isfinite(sources.scores.grad).all()
    assert float(sources.scores.grad.abs().sum()) > 0
    later = torch.arange(TOTAL)[None, :] // HEADS >= torch.arange(TOTAL)[:, None] // HEADS
    assert float(sources.scores.grad[later].abs().sum()) == 0.0


def test_hard_roles_cut_forwards_and_pass_backwards() -> None:
    gates = torch.tensor([0.2, 0.7], requires_grad=True)
    roles = hard_roles(gates)
    roles.sum().backward()
    assert roles.tolist() == [0.0, 1.0]
    assert gates.grad is not None
    assert gates.grad.tolist() == [1.0, 1.0]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="sources is 'nearest'; allowed: same-index, measured, learned"):
        Sources("nearest", 2, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gain has shape None; allowed: \(4, 4\)"):
        Sources("measured", 2, 2)
