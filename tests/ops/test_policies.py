"""Rival policies: each one's choice by hand, what all have in common on random rows, and what is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_kernels.hybrid_decode import hybrid_decode
from lychee_kernels.layout import Mode, TokenSets, set_bound
from lychee_kernels.policies import Policy, PolicyRows, policy_decode
from lychee_kernels.policies.reference import block_scores, choose_row, page_scores, random_scores
from lychee_kernels.testing import LayerInputs, layer, make_layer_inputs, make_rows

RIVALS = [policy for policy in Policy if policy is not Policy.PLAN]
EACH_HEAD = [policy for policy in RIVALS if not policy.by_plan]


def run(inputs, heads, sets, rows, policy, *, layer_id=5, seeds=None, **options):
    asked = PolicyRows(policy=policy, layer=layer_id, seeds=seeds or (0,) * len(rows), **options)
    return policy_decode(
        inputs.q, inputs.k_buffer, inputs.v_buffer, inputs.kv_indptr, inputs.kv_indices, heads, sets, rows, asked, 0.125
    )


def keys_of(inputs: LayerInputs, row: int) -> torch.Tensor:
    start, end = inputs.kv_indptr[row : row + 2].tolist()
    return inputs.k_buffer[inputs.kv_indices[start:end]]


def attention(inputs: LayerInputs, row: int, head: int, chosen: list[int], group: int) -> torch.Tensor:
    """Plain attention of a group over chosen positions, in float64."""
    start, end = inputs.kv_indptr[row : row + 2].tolist()
    slots = inputs.kv_indices[start:end][chosen]
    q = inputs.q[row].double().reshape(-1, group, inputs.q.shape[-1])[head]
    scores = q @ inputs.k_buffer[slots, head].double().T * 0.125
    return scores.softmax(-1) @ inputs.v_buffer[slots, head].double()


def test_window_is_the_first_and_the_last() -> None:
    """Six tokens, four of them: a sink, and the three last, of which one is `recent` and two come by their position."""
    inputs = make_layer_inputs([6], kv_heads=2, group=2, head_dim=8)
    rows = make_rows(1, budget=4, sinks=1, recent=1)
    result = run(inputs, layer("RR"), TokenSets.empty(1, 2, 4), rows, Policy.WINDOW)
    for head in range(2):
        expected = attention(inputs, 0, head, [0, 3, 4, 5], 2)
        torch.testing.assert_close(result.out[0].reshape(2, 2, 8)[head].double(), expected, atol=1e-5, rtol=1e-5)
    assert result.attended.tolist() == [2 * 4]


def test_a_page_is_worth_the_largest_product_that_its_keys_could_have() -> None:
    """Two pages of two dimensions. q = (1, -2).

    Page 0 has dimension 0 in [0, 3] and dimension 1 in [-1, 0]: 1 * 3 + (-2) * (-1) = 5. Page 1, one token (4, 1), is
    worth 4 - 2 = 2, its own product. No key of page 0 reaches 5.
    """
    keys = torch.zeros(17, 1, 2, dtype=torch.float64)
    keys[3, 0, 0], keys[9, 0, 1], keys[16, 0] = 3.0, -1.0, torch.tensor([4.0, 1.0])
    scores = page_scores(torch.tensor([[[1.0, -2.0]]], dtype=torch.float64), keys, 1.0)
    expected = math.exp(5) / (math.exp(5) + math.exp(2))
    assert scores[0, :16].tolist() == pytest.approx([expected] * 16)
    assert scores[0, 16].item() == pytest.approx(1 - expected)


def test_pages_are_pooled_over_the_group_as_probabilities() -> None:
    keys = torch.zeros(32, 1, 1, dtype=torch.float64)
    keys[:16], keys[16:] = 1.0, 3.0
    scores = page_scores(torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64), keys, 1.0)
    first, second = math.exp(1) / (math.exp(1) + math.exp(3)), math.exp(-1) / (math.exp(-1) + math.exp(-3))
    assert scores[0, 0].item() == pytest.approx((first + second) / 2)
    assert scores[0].sum().item() == pytest.approx(16)


def test_the_last_page_that_goes_in_is_cut_to_the_budget() -> None:
    """48 tokens and the current one; the second page is worth most, then the third; 20 tokens beside the current."""
    weights = torch.tensor([0.1] * 16 + [0.5] * 16 + [0.3] * 16 + [0.2])
    chosen = choose_row(Policy.QUEST, weights, Mode.TOPK, (21, 0.0, 0, 1))
    assert chosen.tolist() == [*range(16, 32), *range(32, 36), 48]


def test_a_block_is_worth_the_mass_that_it_adds() -> None:
    """The current token's own mass does not draw its block in; block 1 adds 0.3, block 2 adds 0.1."""
    weights = torch.zeros(130)
    weights[70], weights[128], weights[129] = 0.3, 0.1, 0.6
    assert block_scores(weights, 0, 1)[[0, 70, 128]].tolist() == pytest.approx([0.0, 0.3, 0.1])
    assert choose_row(Policy.BLOCK, weights, Mode.TOPK, (66, 0.0, 0, 1)).tolist() == [*range(64, 128), 128, 129]
    assert choose_row(Policy.BLOCK, weights, Mode.TOPK, (11, 0.0, 0, 1)).tolist() == [*range(64, 74), 129]


def test_random_scores_repeat_and_depend_on_every_number() -> None:
    base = random_scores(3, 500, 2, 1)
    assert torch.equal(base, random_scores(3, 500, 2, 1))
    others = [random_scores(*numbers) for numbers in ((4, 500, 2, 1), (3, 500, 1, 1), (3, 500, 2, 2))]
    for other in [*others, random_scores(3, 501, 2, 1)[:500]]:
        # of two independent draws about half of the pairs stand the one way round
        assert 200 < int((base > other).sum()) < 300
    assert base.unique().numel() > 495
    assert 0 <= float(base.min()) < float(base.max()) < 2**24


def test_random_scores_are_even_over_positions() -> None:
    """Of 1,000 positions the best 100 are drawn 400 times; each tenth of the context gets its share."""
    counts = torch.zeros(10)
    for seed in range(400):
        best = random_scores(seed, 1000, 0, 0).topk(100).indices
        counts += torch.bincount(best // 100, minlength=10)
    # 4,000 are expected in each, with a standard deviation of about 57
    assert (counts - 4000).abs().max() < 5 * 57


def test_oracle_takes_each_heads_own_best() -> None:
    inputs = make_layer_inputs([40, 23], kv_heads=2, group=3, head_dim=16)
    result = run(inputs, layer("SS"), TokenSets.empty(2, 2, 1), make_rows(2, budget=9, audit=True), Policy.ORACLE)
    for row, n in enumerate((40, 23)):
        q = inputs.q[row].double().reshape(2, 3, 16)
        for head in range(2):
            weights = (q[head] @ keys_of(inputs, row)[:, head].double().T * 0.125).softmax(-1).mean(0)
            best = (weights[2 : n - 3].topk(9 - 5).indices + 2).tolist()
            chosen = sorted([0, 1, *best, n - 3, n - 2, n - 1])
            got = result.out[row].reshape(2, 3, 16)[head].double()
            torch.testing.assert_close(got, attention(inputs, row, head, chosen, 3), atol=1e-5, rtol=1e-5)
    assert result.attended.tolist() == [18, 18]
    assert result.recall_heads.tolist() == [2, 2]


def test_block_hands_the_plans_sets_down() -> None:
    """A layer of the plan writes a set by blocks; a later layer's sparse heads read it."""
    inputs = make_layer_inputs([200], kv_heads=2, group=2, head_dim=8)
    sets, rows = TokenSets.empty(1, 2, 70), make_rows(1, budget=70, sinks=2, recent=3)
    first = run(inputs, layer("RR"), sets, rows, Policy.BLOCK)
    assert first.attended.tolist() == [400]
    chosen = sets.positions[0, 1].tolist()
    assert sets.counts.tolist() == [[70, 70]]
    assert {0, 1, 197, 198, 199} <= set(chosen)
    blocks = [position // 64 for position in chosen if 2 <= position < 197]
    assert max(blocks.count(block) for block in set(blocks)) >= 62
    second = run(inputs, layer("RS"), sets, rows, Policy.BLOCK)
    assert second.attended.tolist() == [200 + 70]
    got = second.out[0].reshape(2, 2, 8)[1].double()
    torch.testing.assert_close(got, attention(inputs, 0, 1, chosen, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layer_id", "read"), [(0, 2 * 100), (1, 2 * 100), (2, 2 * (10 + 7))])
def test_quest_reads_two_layers_densely_then_its_sets_and_seven_pages(layer_id: int, read: int) -> None:
    inputs = make_layer_inputs([100], kv_heads=2, group=1, head_dim=8)
    sets = TokenSets.empty(1, 2, 10)
    result = run(inputs, layer("RR"), sets, make_rows(1, budget=10), Policy.QUEST, layer_id=layer_id)
    assert result.attended.tolist() == [read]


@pytest.mark.parametrize("policy", RIVALS, ids=lambda policy: policy.name.lower())
def test_a_dense_row_reads_everything_and_nothing_beside(policy: Policy) -> None:
    inputs = make_layer_inputs([33, 60], kv_heads=2, group=2, head_dim=8)
    rows = make_rows(2, budget=10, dense=[True, False])
    roots = TokenSets.empty(2, 2, 10)
    roots.positions[1, :], roots.counts[1, :] = torch.arange(10, dtype=torch.int32), 10
    result = run(inputs, layer("SS"), roots, rows, policy)
    assert result.attended.tolist() == [66, 2 * (10 + policy.beside(60))]
    for head in range(2):
        got = result.out[0].reshape(2, 2, 8)[head].double()
        torch.testing.assert_close(got, attention(inputs, 0, head, [*range(33)], 2), atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    policy=st.sampled_from(EACH_HEAD),
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    budget=st.integers(1, 60),
    mode=st.sampled_from([Mode.TOPK, Mode.RATIO]),
    kept=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    seed=st.integers(0, 2**31 - 1),
)
def test_on_random_rows(policy, lengths, budget, mode, kept, seed) -> None:
    """Every policy reads sets of the same size, repeats itself, and holds no more mass than oracle."""
    generator = torch.Generator().manual_seed(seed)
    inputs = make_layer_inputs(lengths, kv_heads=2, group=2, head_dim=8, dtype=torch.float64, generator=generator)
    row = {"mode": mode, "budget": budget, "value": 0.3 if mode is Mode.RATIO else 0.0, "sinks": kept[0],
           "recent": kept[1], "audit": True}  # fmt: skip
    rows, seeds = make_rows(len(lengths), **row), tuple(seed for _ in lengths)
    got = run(inputs, layer("RR"), TokenSets.empty(len(lengths), 2, 1), rows, policy, seeds=seeds)
    size = [set_bound(mode, budget, row["value"], n) for n in lengths]
    assert got.attended.tolist() == [2 * (k + policy.beside(n)) for k, n in zip(size, lengths, strict=True)]
    best = run(inputs, layer("RR"), TokenSets.empty(len(lengths), 2, 1), rows, Policy.ORACLE, seeds=seeds)
    assert (got.recall_sum <= best.recall_sum + 1e-9).all()
    full = [k == n for k, n in zip(size, lengths, strict=True)]
    assert torch.allclose(got.recall_sum[full], torch.full((sum(full),), 2.0, dtype=torch.float64))
    again = run(inputs, layer("RR"), TokenSets.empty(len(lengths), 2, 1), rows, policy, seeds=seeds)
    assert torch.equal(got.out, again.out)


def test_heads_of_another_rank_draw_their_own_sets() -> None:
    """The second half of four heads, on a rank of its own, gives what it gives beside the first."""
    inputs = make_layer_inputs([50], kv_heads=4, group=1, head_dim=8)
    rows = make_rows(1, budget=10)
    whole = run(inputs, layer("RRRR"), TokenSets.empty(1, 4, 1), rows, Policy.RANDOM)
    half = LayerInputs(
        q=inputs.q[:, 2:], k_buffer=inputs.k_buffer[:, 2:], v_buffer=inputs.v_buffer[:, 2:],
        kv_indptr=inputs.kv_indptr, kv_indices=inputs.kv_indices,
    )  # fmt: skip
    second = run(half, layer("RR"), TokenSets.empty(1, 2, 1), rows, Policy.RANDOM, first_head=2)
    torch.testing.assert_close(second.out, whole.out[:, 2:])


@pytest.mark.parametrize(
    ("policy", "rows", "seeds", "message"),
    [
        (Policy.PLAN, make_rows(1), (0,), "policy is PLAN"),
        (Policy.QUEST, make_rows(1), (0, 1), "seeds has 2 numbers, expected one for each of 1 rows"),
        (Policy.ORACLE, make_rows(1, mode=Mode.TOP_P, value=0.5), (0,), "mode is top_p, allowed with a policy: topk"),
    ],
    ids=["plan", "seeds", "mode"],
)
def test_refusals(policy, rows, seeds, message) -> None:
    inputs = make_layer_inputs([6], kv_heads=1, group=1, head_dim=8)
    with pytest.raises(ValueError, match=message):
        run(inputs, layer("R"), TokenSets.empty(1, 1, 4), rows, policy, seeds=seeds)


def test_the_table_of_design_is_what_the_policies_are() -> None:
    text = (Path(__file__).parents[2] / "DESIGN.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", text.split("### 11.1")[1], re.MULTILINE)
    assert [name for name, *_ in rows] == [policy.name.lower() for policy in Policy]
    for name, who, _, beside, dense in rows:
        policy = Policy[name.upper()]
        assert ("plan" in who) == policy.by_plan
        assert ("16" in beside) == (policy.beside(33) == 3)
        layers = [] if dense == "none" else [int(number) for number in dense.split(",")]
        assert layers == ([0] if policy.by_plan else [*range(policy.dense_layers)])


def test_attention_can_be_another_implementation() -> None:
    inputs, used = make_layer_inputs([20], kv_heads=2, group=1, head_dim=8), []

    def attend(*args):
        used.append(args[5].reads)
        return hybrid_decode(*args)

    asked = PolicyRows(policy=Policy.WINDOW, layer=0, seeds=(0,))
    pool = (inputs.q, inputs.k_buffer, inputs.v_buffer, inputs.kv_indptr, inputs.kv_indices)
    rows = make_rows(1, budget=4)
    policy_decode(*pool, layer("RR"), TokenSets.empty(1, 2, 1), rows, asked, 0.125, attend=attend)
    assert used == [(0, 1)]
