"""The student of a training step, against the deployed model where gates are 0 or 1, and its derivatives."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lychee_sgl.heads.hybrid_hf import Decoding, Prefix, hybrid_attention, prefill, step
from lychee_sgl.heads.measure import LoadedModel
from lychee_sgl.heads.plan import HeadPlan, PlanDefaults
from lychee_sgl.heads.rows import check_supported, hidden_states, rows_attached
from lychee_sgl.heads.train.gated import DenseAnswer, GatedAnswer, Handed, mixed_attention
from lychee_sgl.heads.train.sources import SourceKind, Sources

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
}  # fmt: skip


def some_tokens(count: int, seed: int = 1) -> list[int]:
    return torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]


def answer_of(tiny: LoadedModel, prefix: Prefix, gates: torch.Tensor, sources: Sources, **more: bool) -> GatedAnswer:
    flat = gates.flatten(1)
    return GatedAnswer(
        prefix=prefix, gates=gates, roots=sources.roots(flat.detach() > 0.5),
        weights=sources.weights(flat) if flat.requires_grad else None, budget=12, sinks=2, recent=3, **more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["same-index", "measured", "learned"])
def test_gates_of_0_and_1_are_the_deployed_plan(tiny: LoadedModel, kind: SourceKind) -> None:
    gain = torch.rand(12, 12, generator=torch.Generator().manual_seed(2))
    sources = Sources(kind, 4, 3, gain)
    roles = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    letters = tuple("".join("R" if flag else "S" for flag in row) for row in roles.tolist())
    plan = HeadPlan("t", tiny.shape, letters, sources.export(roles), PlanDefaults(sinks=2, recent=3))
    prefix, more = prefill(tiny.model, some_tokens(60)), some_tokens(7, seed=5)
    with torch.no_grad():
        with hybrid_attention(tiny.model):
            wanted = step(tiny.model, Decoding(prefix=prefix, plan=plan, budget=12), more)
        two = torch.stack((roles.float(), torch.ones(4, 3)))  # beside it in the batch: everything dense
        with rows_attached(tiny.model):
            student = answer_of(tiny, prefix, two, sources)
            got = hidden_states(tiny.model, student, torch.tensor([more, more]), 60)
            told = hidden_states(tiny.model, DenseAnswer(prefix=prefix), torch.tensor([more]), 60)
        logits = tiny.model.lm_head(got[0])
    assert torch.allclose(logits, wanted, atol=1e-3)
    assert torch.allclose(got[1], told[0], atol=1e-4)
    assert not torch.allclose(got[0], told[0], atol=0.1)


def test_the_models_weights_get_no_gradient_and_recomputing_changes_nothing(tiny: LoadedModel) -> None:
    sources = Sources("same-index", 4, 3)
    prefix, more = prefill(tiny.model, some_tokens(40)), torch.tensor([some_tokens(5, seed=6)] * 2)
    found = []
    for recompute in (False, True):
        gates = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(9)).requires_grad_(True)
        with rows_attached(tiny.model):
            student = answer_of(tiny, prefix, gates, sources, recompute=recompute)
            hidden_states(tiny.model, student, more, 40).square().sum().backward()
        assert gates.grad is not None
        found.append(gates.grad)
    assert torch.equal(*found)
    assert float(found[0][:, 1:].abs().min()) > 0
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


def sets_and_scores() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sets of four earlier heads, scores of two heads of two members over seven positions, and roots."""
    draw = torch.Generator().manual_seed(4)
    sets = torch.rand(1, 6, 3, 7, generator=draw) < 0.6
    sets[..., 0] = True
    scores = torch.randn(1, 2, 2, 3, 7, generator=draw, dtype=torch.float64)
    scores[..., 0] += 2.0  # what every set holds has a good share: no bound on the mass
    return sets, scores, torch.tensor([[1, 3]])


def test_mixing_is_differentiable_by_scores_and_gates() -> None:
    sets, scores, roots = sets_and_scores()
    handed = Handed(sets=sets, roots=roots, earlier=4)
    gates = torch.tensor([[0.3, 0.8]], dtype=torch.float64)

    def mixed(scores: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        return mixed_attention(scores, scores.detach().softmax(-1), gates, handed)

    assert torch.autograd.gradcheck(mixed, (scores.requires_grad_(True), gates.requires_grad_(True)))


def test_a_weight_hears_what_its_set_would_add() -> None:
    sets, scores, roots = sets_and_scores()
    dense, gates = scores.softmax(-1), torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    weights = torch.zeros(1, 2, 6, dtype=torch.float64)
    weights[0, 0, 1] = weights[0, 1, 3] = 1.0
    weights.requires_grad_(True)
    pull = torch.randn(scores.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (mixed_attention(scores, dense, gates, Handed(sets=sets, roots=roots, earlier=4), weights) * pull).sum().backward()

    def soft(weights: torch.Tensor) -> torch.Tensor:  # the same with a set that may be held in part
        mask = torch.einsum("bhc,bcmn->bhmn", weights[..., :4], sets[:, :4].double())[:, :, None]
        sparse = dense * mask / (dense * mask).sum(-1, keepdim=True)
        z = gates[:, :, None, None, None]
        return ((z * dense + (1 - z) * sparse) * pull).sum()

    wanted = torch.autograd.functional.jacobian(soft, weights.detach())
    assert weights.grad is not None
    assert torch.allclose(weights.grad, wanted)
    assert float(weights.grad[..., 4:].abs().sum()) == 0.0  # heads of later layers


def test_a_set_without_mass_gives_finite_derivatives() -> None:
    sets, scores, roots = sets_and_scores()
    sets[0, 1], sets[0, 1, :, 6] = False, True
    scores = scores.float()
    scores[..., 6] -= 200.0  # underflows in the dense softmax
    scores.requires_grad_(True)
    weights = torch.zeros(1, 2, 6, requires_grad=True)
    handed = Handed(sets=sets, roots=roots, earlier=4)
    used = mixed_attention(scores, scores.detach().softmax(-1), torch.zeros(1, 2), handed, weights)
    assert torch.allclose(used[0, 0, :, :, 6], torch.ones(2, 3))
    used.square().sum().backward()
    assert weights.grad is not None
    assert torch.isfinite(weights.grad).all()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


FAMILIES = (
    (LlamaForCausalLM, LlamaConfig, {}),
    (Qwen2ForCausalLM, Qwen2Config, {}),
    (Qwen3ForCausalLM, Qwen3Config, {}),
    (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
)


@pytest.mark.parametrize(("family", "config", "more"), FAMILIES, ids=["llama", "qwen2", "qwen3", "mistral"])
def test_rows_run_every_supported_family(family: type, config: type, more: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = family(config(**SIZES, **more)).eval().requires_grad_(False)
    before = model.config._attn_implementation
    tokens = torch.randint(0, 50, (2, 30))
    tokens[1, :20] = tokens[0, :20]
    with torch.no_grad():
        wanted = model(input_ids=tokens).logits[:, 20:]
        prefix = prefill(model, tokens[0, :20].tolist())
        with rows_attached(model):
            got = model.lm_head(hidden_states(model, DenseAnswer(prefix=prefix), tokens[:, 20:], 20))
    assert torch.allclose(got, wanted, atol=1e-4)
    assert model.config._attn_implementation == before


def test_other_models_are_refused() -> None:
    windowed = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16))
    with pytest.raises(ValueError, match="sliding windows"):
        check_supported(windowed)
    qwen = Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1))
    with pytest.raises(ValueError, match="sliding windows"):
        check_supported(qwen)
    windowed.config.model_type = "gpt2"
    with pytest.raises(ValueError, match="model type is 'gpt2'; allowed: llama, mistral, qwen2, qwen3"):
        check_supported(windowed)


def test_the_models_own_attention_comes_back_after_an_error(tiny: LoadedModel) -> None:
    before = tiny.model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), rows_attached(tiny.model):
        raise RuntimeError("stop")
    assert tiny.model.config._attn_implementation == before
