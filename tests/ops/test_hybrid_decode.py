"""The reference of a hybrid layer: against plain attention, and by hand."""

import math
from dataclasses import replace

import pytest
import torch

from lychee_kernels.hybrid_decode import hybrid_decode
from lychee_kernels.layout import LayerHeads, Mode, TokenSets
from lychee_kernels.testing import layer, make_layer_inputs, make_rows, poisoned_sets


def run(inputs, heads, sets, rows, scale=0.125, **pool_scales):
    return hybrid_decode(
        inputs.q,
        inputs.k_buffer,
        inputs.v_buffer,
        inputs.kv_indptr,
        inputs.kv_indices,
        heads,
        sets,
        rows,
        scale,
        **pool_scales,
    )


def plain_attention(inputs, row, head, group, scale=0.125, chosen=None):
    start, end = inputs.kv_indptr[row : row + 2].tolist()
    slots = inputs.kv_indices[start:end]
    if chosen is not None:
        slots = slots[chosen]
    q = inputs.q[row].double().reshape(-1, group, inputs.q.shape[-1])[head]
    scores = torch.einsum("gd,nd->gn", q, inputs.k_buffer[slots, head].double()) * scale
    return scores.softmax(-1) @ inputs.v_buffer[slots, head].double(), scores


def test_all_retrieval_is_dense_attention() -> None:
    inputs = make_layer_inputs([1, 7, 33], kv_heads=2, group=3, head_dim=16)
    result = run(inputs, layer("RR"), TokenSets.empty(3, 2, 8), make_rows(3, budget=8))
    for row in range(3):
        for head in range(2):
            expected, scores = plain_attention(inputs, row, head, 3)
            actual = result.out[row].reshape(2, 3, 16)[head]
            torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)
            lse = result.lse[row].reshape(2, 3)[head].double()
            torch.testing.assert_close(lse, scores.logsumexp(-1), atol=1e-5, rtol=1e-5)
    assert result.attended.tolist() == [2, 14, 66]


def test_a_retrieval_head_writes_the_set_of_its_groups_mean_probability() -> None:
    inputs = make_layer_inputs([40], kv_heads=1, group=2, head_dim=8)
    sets = poisoned_sets(1, 1, 12)
    run(inputs, layer("R"), sets, make_rows(1, budget=12, sinks=2, recent=3))
    _, scores = plain_attention(inputs, 0, 0, 2)
    weights = scores.softmax(-1).mean(0)
    middle = weights[2:37].topk(12 - 5).indices + 2
    expected = sorted([0, 1, 37, 38, 39, *middle.tolist()])
    assert sets.positions[0, 0].tolist() == expected
    assert sets.counts[0, 0] == 12


def test_a_sparse_head_attends_to_its_roots_set_and_nothing_else() -> None:
    inputs = make_layer_inputs([20, 9], kv_heads=2, group=2, head_dim=8, dtype=torch.float64)
    sets = TokenSets.empty(2, 3, 6)
    sets.positions[0, 2, :4] = torch.tensor([0, 5, 6, 19])
    sets.positions[1, 2, :2] = torch.tensor([3, 8])
    sets.counts[:, 2] = torch.tensor([4, 2])
    result = run(inputs, layer("RS", reads={1: 2}), sets, make_rows(2, budget=6, audit=True))
    for row, chosen in enumerate(([0, 5, 6, 19], [3, 8])):
        expected, _ = plain_attention(inputs, row, 1, 2, chosen=chosen)
        torch.testing.assert_close(result.out[row].reshape(2, 2, 8)[1], expected, atol=1e-12, rtol=1e-12)
        _, scores = plain_attention(inputs, row, 1, 2)
        mass = scores.softmax(-1)[:, chosen].sum(-1).mean()
        assert math.isclose(result.recall_sum[row].item(), mass.item(), rel_tol=1e-12)
    assert result.recall_heads.tolist() == [1, 1]
    assert result.attended.tolist() == [20 + 4, 9 + 2]


def test_a_dense_row_ignores_and_leaves_the_sets() -> None:
    inputs = make_layer_inputs([11, 11], kv_heads=2, group=1, head_dim=8)
    sets = poisoned_sets(2, 2, 4)
    rows = make_rows(2, budget=4, sinks=1, recent=1, dense=[True, False], audit=True)
    sets.positions[1, 1, :2] = torch.tensor([0, 10])
    sets.counts[1, 1] = 2
    result = run(inputs, layer("RS"), sets, rows)
    expected, _ = plain_attention(inputs, 0, 1, 1)
    torch.testing.assert_close(result.out[0].reshape(2, 1, 8)[1].double(), expected, atol=1e-5, rtol=1e-5)
    assert sets.positions[0].unique().tolist() == [2**30]
    assert result.recall_heads.tolist() == [0, 1]
    assert result.attended.tolist() == [22, 11 + 2]


def test_an_empty_set_gives_zeros_and_minus_infinity() -> None:
    inputs = make_layer_inputs([5], kv_heads=1, group=2, head_dim=8)
    result = run(inputs, LayerHeads(writes=(-1,), reads=(0,)), TokenSets.empty(1, 1, 4), make_rows(1, audit=True))
    assert result.out.abs().max() == 0
    assert result.lse.tolist() == [[-math.inf, -math.inf]]
    assert result.recall_sum.tolist() == [0.0]


def test_a_set_of_everything_equals_dense() -> None:
    inputs = make_layer_inputs([17], kv_heads=1, group=3, head_dim=8)
    sets = TokenSets.empty(1, 1, 17)
    dense = run(inputs, layer("R"), sets, make_rows(1, budget=17))
    sparse = run(inputs, LayerHeads(writes=(-1,), reads=(0,)), sets, make_rows(1, budget=17, audit=True))
    torch.testing.assert_close(sparse.out, dense.out)
    assert math.isclose(sparse.recall_sum.item(), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_pool_of_eight_bits_means_what_it_holds_times_its_scales(dtype: torch.dtype) -> None:
    inputs = make_layer_inputs([30, 9], kv_heads=2, group=2, head_dim=16, dtype=torch.float64)
    coarse = replace(inputs, k_buffer=(inputs.k_buffer * 4).to(dtype), v_buffer=(inputs.v_buffer / 8).to(dtype))
    exact = replace(inputs, k_buffer=coarse.k_buffer.double() / 4, v_buffer=coarse.v_buffer.double() * 8)
    rows, results = make_rows(2, budget=6, audit=True), []
    for pool, scales in ((coarse, {"k_scale": 0.25, "v_scale": 8.0}), (exact, {})):
        sets = TokenSets.empty(2, 3, 9)
        sets.positions[:, 2, :3] = torch.tensor([0, 5, 8])
        sets.counts[:, 2] = 3
        results.append((run(pool, layer("RS", reads={1: 2}), sets, rows, **scales), sets))
    (got, chosen), (expected, best) = results
    torch.testing.assert_close(got.out, expected.out, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(got.lse, expected.lse, atol=1e-12, rtol=1e-12)
    assert torch.equal(chosen.positions, best.positions)
    torch.testing.assert_close(got.recall_sum, expected.recall_sum, atol=1e-12, rtol=1e-12)


def test_refusals() -> None:
    inputs = make_layer_inputs([5, 5], kv_heads=2, group=2, head_dim=8)
    sets = TokenSets.empty(2, 2, 4)
    with pytest.raises(ValueError, match=r"k_buffer has shape \(25, 2, 8\), expected \('slots', 3, 'D'\)"):
        run(inputs, layer("RRR"), sets, make_rows(2))
    with pytest.raises(ValueError, match=r"rows.mode has shape \(3,\)"):
        run(inputs, layer("RR"), sets, make_rows(3))
    with pytest.raises(ValueError, match="does not fit the capacity 4"):
        run(inputs, layer("RR"), sets, make_rows(2, mode=Mode.TOPK, budget=5))
    with pytest.raises(ValueError, match="writes set 1 and reads set 0"):
        LayerHeads(writes=(1,), reads=(0,))
