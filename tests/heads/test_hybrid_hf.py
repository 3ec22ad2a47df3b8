"""Hybrid decoding of a transformers model, against dense decoding and against a second way to compute it."""

import math

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lychee_sgl.heads.hybrid_hf import (
    IMPLEMENTATION,
    Decoding,
    continues_as,
    generate,
    hybrid_attention,
    prefill,
    step,
)
from lychee_sgl.heads.measure import LoadedModel
from lychee_sgl.heads.plan import HeadPlan, PlanDefaults

ROLES = ("RRR", "SRS", "SSS", "RSS")
SOURCES = {(1, 0): (0, 2), (2, 1): (0, 1), (3, 1): (2, 0), (3, 2): (1, 2)}


def plan_for(tiny: LoadedModel, sinks: int = 2, recent: int = 3) -> HeadPlan:
    return HeadPlan("t", tiny.shape, ROLES, SOURCES, PlanDefaults(sinks=sinks, recent=recent))


def some_tokens(count: int, seed: int = 1) -> list[int]:
    return torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]


def test_dense_decoding_is_the_models_own(tiny: LoadedModel) -> None:
    prompt, more = some_tokens(40), some_tokens(6, seed=2)
    with torch.no_grad():
        wanted = tiny.model(input_ids=torch.tensor([prompt + more])).logits[0]
        prefix = prefill(tiny.model, prompt)
        with hybrid_attention(tiny.model):
            got = step(tiny.model, Decoding(prefix=prefix), more)
    assert torch.allclose(prefix.logits, wanted[39], atol=1e-4)
    assert torch.allclose(got, wanted[40:], atol=1e-4)


def test_a_prompt_in_chunks_is_the_same_prompt(tiny: LoadedModel) -> None:
    prompt = some_tokens(37)
    whole, parts = prefill(tiny.model, prompt), prefill(tiny.model, prompt, chunk=16)
    assert len(whole) == len(parts) == 37
    assert torch.allclose(whole.keys, parts.keys, atol=1e-4)
    assert torch.allclose(whole.logits, parts.logits, atol=1e-3)
    with pytest.raises(ValueError, match="tokens is empty"):
        prefill(tiny.model, [])


def test_greedy_answers_are_those_of_transformers(tiny: LoadedModel) -> None:
    prompt = some_tokens(30, seed=3)
    told = tiny.model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 30), max_new_tokens=12, do_sample=False
    )[0, 30:].tolist()
    wanted = told[: told.index(0)] if 0 in told else told
    with hybrid_attention(tiny.model):
        got = generate(tiny.model, Decoding(prefix=prefill_outside(tiny, prompt)), stop=tiny.stop, max_tokens=12)
    assert got == wanted


def prefill_outside(tiny: LoadedModel, prompt: list[int]):  # type: ignore[no-untyped-def]
    tiny.model.config._attn_implementation = "sdpa"
    try:
        return prefill(tiny.model, prompt)
    finally:
        tiny.model.config._attn_implementation = IMPLEMENTATION


def test_a_budget_that_covers_the_context_changes_nothing(tiny: LoadedModel) -> None:
    prefix = prefill(tiny.model, some_tokens(50))
    with hybrid_attention(tiny.model):
        dense = generate(tiny.model, Decoding(prefix=prefix), stop=frozenset(), max_tokens=10)
        full = Decoding(prefix=prefix, plan=plan_for(tiny), budget=60)
        assert generate(tiny.model, full, stop=frozenset(), max_tokens=10) == dense
        assert full.mean_recall == pytest.approx(1.0)
        tight = Decoding(prefix=prefix, plan=plan_for(tiny), budget=8)
        assert generate(tiny.model, tight, stop=frozenset(), max_tokens=10) != dense  # the roles do something
        assert tight.mean_recall < 0.99


def test_tokens_together_are_tokens_one_by_one(tiny: LoadedModel) -> None:
    prefix, more = prefill(tiny.model, some_tokens(60)), some_tokens(7, seed=5)
    with torch.no_grad(), hybrid_attention(tiny.model):
        together = Decoding(prefix=prefix, plan=plan_for(tiny), budget=12)
        one_by_one = Decoding(prefix=prefix, plan=plan_for(tiny), budget=12)
        got = step(tiny.model, together, more)
        wanted = torch.cat([step(tiny.model, one_by_one, [token]) for token in more])
    assert torch.allclose(got, wanted, atol=1e-3)
    assert together.recall.keys() == one_by_one.recall.keys()
    assert together.mean_recall == pytest.approx(one_by_one.mean_recall, abs=1e-4)


def test_known_answers_are_compared_token_by_token(tiny: LoadedModel) -> None:
    prefix = prefill(tiny.model, some_tokens(50))
    with hybrid_attention(tiny.model):
        answer = generate(tiny.model, Decoding(prefix=prefix), stop=frozenset(), max_tokens=8)
        assert continues_as(tiny.model, Decoding(prefix=prefix), answer, None) == 8
        changed = [*answer[:5], (answer[5] + 1) % 259, *answer[6:]]
        assert continues_as(tiny.model, Decoding(prefix=prefix), changed, None) == 5
        nine = generate(tiny.model, Decoding(prefix=prefix), stop=frozenset(), max_tokens=9)
        assert continues_as(tiny.model, Decoding(prefix=prefix), answer, nine[8]) == 9
        assert continues_as(tiny.model, Decoding(prefix=prefix), answer, (nine[8] + 1) % 259) == 8


def brute_force(tiny: LoadedModel, plan: HeadPlan, prompt: list[int], token: int, budget: int) -> torch.Tensor:
    """One decode step with plain loops in float64, straight from the definition; logits [V]."""
    model, shape = tiny.model.model, tiny.shape
    prefix = prefill(tiny.model, prompt)
    position = len(prompt)
    hidden = model.embed_tokens(torch.tensor([[token]]))
    cos, sin = model.rotary_emb(hidden, torch.tensor([[position]]))
    sets: dict[tuple[int, int], list[int]] = {}
    for index, layer in enumerate(model.layers):
        residual, normed = hidden, layer.input_layernorm(hidden)
        attention, size = layer.self_attn, shape.head_dim
        q, k, v = (
            projection(normed).view(1, 1, -1, size).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        outputs = []
        for query_head in range(shape.num_attention_heads):
            head = query_head // shape.group_size
            keys = torch.cat((prefix.keys[index, head], k[0, head])).double()
            values = torch.cat((prefix.values[index, head], v[0, head])).double()
            everything = list(range(position + 1))
            read = everything
            if plan.is_retrieval(index, head):
                members = range(head * shape.group_size, (head + 1) * shape.group_size)
                weights = sum(softmax(q[0, g, 0].double(), keys, size) for g in members) / shape.group_size
                kept = [i for i in everything if i < plan.defaults.sinks or i > position - plan.defaults.recent]
                others = sorted((i for i in everything if i not in kept), key=lambda i: (-float(weights[i]), i))
                sets[index, head] = sorted(kept + others[: budget - len(kept)])
            else:
                read = sets[plan.root(index, head)]
            chances = softmax(q[0, query_head, 0].double(), keys[read], size)
            outputs.append((chances[:, None] * values[read]).sum(0))
        hidden = residual + attention.o_proj(torch.cat(outputs).float()[None, None])
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return tiny.model.lm_head(model.norm(hidden))[0, 0]  # type: ignore[no-any-return]


def softmax(query: torch.Tensor, keys: torch.Tensor, size: int) -> torch.Tensor:
    exponents = torch.stack([(query * key).sum() / math.sqrt(size) for key in keys])
    raised = (exponents - exponents.max()).exp()
    return raised / raised.sum()


def test_chains_against_plain_loops(tiny: LoadedModel) -> None:
    prompt, token, budget = some_tokens(45, seed=8), 77, 12
    plan = plan_for(tiny)
    with torch.no_grad():
        wanted = brute_force(tiny, plan, prompt, token, budget)
        with_dense = brute_force(tiny, plan, prompt, token, 46)
        prefix = prefill(tiny.model, prompt)
        with hybrid_attention(tiny.model):
            got = step(tiny.model, Decoding(prefix=prefix, plan=plan, budget=budget), [token])[0]
            dense = step(tiny.model, Decoding(prefix=prefix), [token])[0]
    assert torch.allclose(got, wanted, atol=1e-3)
    assert torch.allclose(dense, with_dense, atol=1e-3)
    assert not torch.allclose(got, dense, atol=0.1)


def test_the_models_own_attention_comes_back_even_after_an_error(tiny: LoadedModel) -> None:
    before = tiny.model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), hybrid_attention(tiny.model):
        raise RuntimeError("stop")
    assert tiny.model.config._attn_implementation == before != IMPLEMENTATION
