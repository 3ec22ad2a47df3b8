"""The CPU's compiled decode against the reference, and its selection against the reference's, exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_kernels.hybrid_decode import hybrid_decode as reference_decode
from lychee_kernels.layout import Mode, TokenSets
from lychee_kernels.policies import Policy, PolicyRows, policy_decode
from lychee_kernels.select_tokens.reference import select_row as reference_select
from lychee_kernels.testing import assert_close_to_float64, layer, make_layer_inputs, make_rows
from lychee_sgl.cpu.decode import hybrid_decode
from lychee_sgl.cpu.loops import select_row


def select(weights: torch.Tensor, *row: object) -> list[int]:
    n = len(weights)
    chosen = np.full(n, -7, np.int32)
    count = select_row(weights.numpy(), *row, np.full(n, np.nan, np.float32), chosen)
    return chosen[:count].tolist()


@settings(deadline=None, max_examples=400)
@given(
    mode=st.sampled_from(list(Mode)),
    budget=st.integers(0, 60),
    value=st.floats(0.01, 1.0),
    sinks=st.integers(0, 12),
    recent=st.integers(0, 12),
    length=st.integers(1, 50),
    levels=st.sampled_from([1, 2, 3, 1000]),
    nans=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_selection_equals_the_reference_in_every_mode_with_ties(
    mode, budget, value, sinks, recent, length, levels, nans, seed
) -> None:
    """Weights are multiples of a power of two: sums are exact, so the order of adding cannot matter."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(0, levels + 1, (length,), generator=generator).float() / 1024
    weights[torch.randint(0, length, (nans,), generator=generator)] = torch.nan
    row = (int(mode), max(budget, 1) if mode == Mode.TOPK else budget, value, sinks, recent)
    expected = reference_select(weights, mode, *row[1:]).tolist()
    assert select(weights, *row) == expected


@pytest.mark.parametrize("value", [0.0, torch.nan, -torch.inf])
def test_selection_of_constant_rows(value: float) -> None:
    weights = torch.full((9,), value)
    assert select(weights, int(Mode.TOPK), 4, 0.0, 1, 1) == [0, 1, 2, 8]


def run_both(inputs, heads, roots, capacity, rows, scale):
    results = []
    for decode in (hybrid_decode, reference_decode):
        sets = TokenSets.empty(len(rows), roots, capacity)
        for h, read in enumerate(heads.reads):
            if read >= 0:
                for b in range(len(rows)):
                    n = int(inputs.kv_indptr[b + 1] - inputs.kv_indptr[b])
                    chosen = torch.arange(h % 2, n, 2)[:capacity]
                    sets.positions[b, read, : len(chosen)] = chosen.int()
                    sets.counts[b, read] = len(chosen)
        kwargs = inputs.__class__.__slots__
        results.append((decode(*(getattr(inputs, name) for name in kwargs), heads, sets, rows, scale), sets))
    return results


# every line is compiled anew (seconds each), so few of them; the group's and head's sizes are compile-time constants
@pytest.mark.parametrize(
    ("kv_heads", "group", "head_dim", "dtype"),
    [
        (3, 3, 64, torch.bfloat16),
        (3, 3, 64, torch.float32),
        (1, 1, 32, torch.float32),
        (2, 7, 128, torch.bfloat16),
    ],
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_a_layer_equals_the_reference(kv_heads, group, head_dim, dtype) -> None:
    lengths = [1, 17, 300, 33, 64]
    inputs = make_layer_inputs(lengths, kv_heads=kv_heads, group=group, head_dim=head_dim, dtype=dtype)
    roles = "".join("RS"[h % 2] for h in range(kv_heads))
    heads = layer(roles, reads={h: kv_heads + h for h in range(kv_heads)})
    rows = make_rows(
        5, budget=[4, 9, 20, 64, 8], sinks=2, recent=3, dense=[False, False, False, False, True], audit=True
    )
    scale = head_dim**-0.5
    (fast, fast_sets), (slow, slow_sets) = run_both(inputs, heads, 2 * kv_heads, 64, rows, scale)
    exact = reference_decode(
        inputs.q.double(), inputs.k_buffer.double(), inputs.v_buffer.double(), inputs.kv_indptr, inputs.kv_indices,
        heads, slow_sets, rows, scale,
    )  # fmt: skip
    assert_close_to_float64(fast.out, exact.out, eager=slow.out)
    assert_close_to_float64(fast.lse, exact.lse, eager=slow.lse)
    assert fast.attended.tolist() == slow.attended.tolist() == exact.attended.tolist()
    assert fast.recall_heads.tolist() == exact.recall_heads.tolist()
    torch.testing.assert_close(fast.recall_sum, exact.recall_sum, atol=1e-5, rtol=1e-5)
    assert fast_sets.counts.tolist() == slow_sets.counts.tolist()
    for b in range(5):
        for h in range(kv_heads):
            count = int(slow_sets.counts[b, h])
            assert fast_sets.positions[b, h, :count].tolist() == slow_sets.positions[b, h, :count].tolist()


def test_an_empty_set_gives_zeros() -> None:
    inputs = make_layer_inputs([5], kv_heads=1, group=1, head_dim=32)
    sets = TokenSets.empty(1, 1, 4)
    args = (inputs.q, inputs.k_buffer, inputs.v_buffer, inputs.kv_indptr, inputs.kv_indices)
    result = hybrid_decode(*args, layer("S"), sets, make_rows(1, audit=True), 0.3)
    assert result.out.abs().max() == 0
    assert result.lse.isneginf().all()
    assert result.recall_sum.tolist() == [0.0]


def test_a_half_precision_pool_is_refused() -> None:
    inputs = make_layer_inputs([5], kv_heads=1, group=1, head_dim=32, dtype=torch.float16)
    args = (inputs.q, inputs.k_buffer, inputs.v_buffer, inputs.kv_indptr, inputs.kv_indices)
    with pytest.raises(TypeError, match=r"torch.float16, on the CPU allowed: bfloat16, float32"):
        hybrid_decode(*args, layer("R"), TokenSets.empty(1, 1, 4), make_rows(1), 0.3)


@pytest.mark.parametrize("policy", [policy for policy in Policy if policy is not Policy.PLAN], ids=str)
def test_policies_over_the_compiled_attention_are_their_definition(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(11)
    inputs = make_layer_inputs([70, 200, 1], kv_heads=3, group=3, head_dim=64, generator=generator)
    rows = make_rows(3, budget=[40, 40, 40], dense=[True, False, False], audit=True)
    found = []
    for attend in (reference_decode, hybrid_decode):
        sets = TokenSets.empty(3, 3, 40)
        for number, heads in enumerate((layer("RRR"), layer("RSS"))):
            asked = PolicyRows(policy=policy, layer=2 + number, seeds=(1, 2, 3))
            pool = (inputs.q, inputs.k_buffer, inputs.v_buffer, inputs.kv_indptr, inputs.kv_indices)
            result = policy_decode(*pool, heads, sets, rows, asked, 0.125, attend=attend)
        found.append(result)
    expected, got = found
    torch.testing.assert_close(got.out, expected.out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.recall_sum, expected.recall_sum, atol=1e-5, rtol=1e-5)
    assert got.attended.tolist() == expected.attended.tolist()
