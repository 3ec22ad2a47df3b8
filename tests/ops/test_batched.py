"""All rows at once give what the definition gives row by row: the same sets, and attention up to rounding."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_kernels import padded
from lychee_kernels.hybrid_decode import HybridDecode, hybrid_decode
from lychee_kernels.layout import DecodeRows, LayerHeads, Mode, TokenSets, set_bounds
from lychee_kernels.policies import Policy, PolicyRows, policy_decode
from lychee_kernels.policies import batched as policies_batched
from lychee_kernels.select_tokens import select_mask
from lychee_kernels.select_tokens.batched import choose, row_bounds
from lychee_kernels.select_tokens.reference import select_row
from lychee_kernels.testing import LayerInputs, make_layer_inputs, poisoned_sets

RIVALS = [policy for policy in Policy if policy is not Policy.PLAN]
HEADS = LayerHeads(writes=(0, -1, 2, -1), reads=(-1, 1, -1, 3))
"""A layer that writes sets 0 and 2, and reads 1 and 3, which an earlier layer wrote."""


def pool(inputs: LayerInputs) -> tuple[torch.Tensor, ...]:
    return inputs.q, inputs.k_buffer, inputs.v_buffer, inputs.kv_indptr, inputs.kv_indices


def random_rows(count: int, generator: torch.Generator, modes: list[Mode]) -> DecodeRows:
    """Rows that have nothing in common."""
    draw = torch.randint(0, 2**31, (7, count), generator=generator)
    return DecodeRows(
        mode=torch.tensor([int(modes[i % len(modes)]) for i in draw[0].tolist()], dtype=torch.int32),
        budget=(1 + draw[1] % 70).to(torch.int32),
        value=torch.rand(count, generator=generator, dtype=torch.float64) * 0.99 + 0.01,
        sinks=(draw[2] % 30).to(torch.int32),
        recent=(draw[3] % 30).to(torch.int32),
        dense=draw[4] % 4 == 0,
        audit=draw[5] % 2 == 0,
    )


def largest_set(rows: DecodeRows, lengths: list[int]) -> int:
    """What a decode step makes room for: a dense row's budget counts as nothing, however large it is."""
    bound = set_bounds(rows.mode, rows.budget.long(), rows.value, torch.tensor(lengths))
    return int(bound.masked_fill(rows.dense, 0).max())


def sets_by_an_earlier_layer(lengths: list[int], capacity: int, generator: torch.Generator) -> TokenSets:
    """Sets 1 and 3 hold some positions, down to none; the others hold what must not be read."""
    sets = poisoned_sets(len(lengths), 4, capacity)
    for row, length in enumerate(lengths):
        for root in (1, 3):
            size = int(torch.randint(0, min(length, capacity) + 1, (), generator=generator))
            sets.write(row, root, torch.randperm(length, generator=generator)[:size].sort().values)
    return sets


def copied(sets: TokenSets) -> TokenSets:
    return TokenSets(positions=sets.positions.clone(), counts=sets.counts.clone())


def assert_equal(one: HybridDecode, other: HybridDecode) -> None:
    torch.testing.assert_close(other.out, one.out, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(other.lse, one.lse, atol=1e-10, rtol=1e-10)
    assert torch.equal(other.attended, one.attended)
    assert torch.equal(other.recall_heads, one.recall_heads)
    torch.testing.assert_close(other.recall_sum, one.recall_sum, atol=1e-10, rtol=1e-10)


def assert_same_sets(one: TokenSets, other: TokenSets, rows: DecodeRows, roots: list[int]) -> None:
    """A dense row's sets are nobody's."""
    for row in (~rows.dense).nonzero().flatten().tolist():
        for root in roots:
            count = int(one.counts[row, root])
            assert int(other.counts[row, root]) == count
            assert torch.equal(other.positions[row, root, :count], one.positions[row, root, :count])


LENGTHS = st.lists(st.integers(1, 150), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**31 - 1)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, seed=SEEDS, split=st.booleans())
def test_by_the_plan(lengths: list[int], seed: int, split: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = make_layer_inputs(lengths, kv_heads=4, group=2, head_dim=8, dtype=torch.float64, generator=generator)
    rows = random_rows(len(lengths), generator, list(Mode))
    sets = sets_by_an_earlier_layer(lengths, largest_set(rows, lengths), generator)
    written = copied(sets)
    expected = hybrid_decode(*pool(inputs), HEADS, sets, rows, 0.3)
    with pytest.MonkeyPatch.context() as patch:
        if split:  # a part holds one row or two
            patch.setattr(padded, "PART_ENTRIES", 2 * max(lengths) * 4 * 8)
        found = hybrid_decode(*pool(inputs), HEADS, written, rows, 0.3, impl="batched")
    assert_equal(expected, found)
    assert_same_sets(sets, written, rows, [0, 1, 2, 3])


@settings(max_examples=50, deadline=None)
@given(policy=st.sampled_from(RIVALS), lengths=LENGTHS, seed=SEEDS, layer=st.integers(0, 3), first=st.integers(0, 5))
def test_by_a_policy(policy: Policy, lengths: list[int], seed: int, layer: int, first: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = make_layer_inputs(lengths, kv_heads=4, group=2, head_dim=8, dtype=torch.float64, generator=generator)
    rows = random_rows(len(lengths), generator, [Mode.TOPK, Mode.RATIO])
    asked = PolicyRows(policy=policy, layer=layer, seeds=tuple(range(seed, seed + len(lengths))), first_head=first)
    sets = sets_by_an_earlier_layer(lengths, 150, generator)
    written = copied(sets)
    expected = policy_decode(*pool(inputs), HEADS, sets, rows, asked, 0.3)
    found = policy_decode(*pool(inputs), HEADS, written, rows, asked, 0.3, impl="batched")
    assert_equal(expected, found)
    assert_same_sets(sets, written, rows, [0, 1, 2, 3])
    known = policies_batched.policy_decode(
        *pool(inputs), HEADS, copied(sets), rows, asked, 0.3, most=largest_set(rows, lengths)
    )
    assert_equal(expected, known)


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, seed=SEEDS, spare=st.integers(0, 9), known=st.booleans())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sets_with_ties_and_without_numbers(
    dtype: torch.dtype, lengths: list[int], seed: int, spare: int, known: bool
) -> None:
    """Few different weights, some no finite numbers; and more columns than the longest row has."""
    generator = torch.Generator().manual_seed(seed)
    rows, longest = random_rows(len(lengths), generator, [Mode.TOPK, Mode.RATIO]), max(lengths) + spare
    some = torch.tensor([-torch.inf, -1.0, 0.0, -0.0, 0.25, 3.0, torch.inf, torch.nan], dtype=dtype)
    weights = some[torch.randint(0, len(some), (len(lengths), 2, longest), generator=generator)]
    expected = [
        [
            select_row(
                weights[row, head, :length], Mode(int(rows.mode[row])),
                int(rows.budget[row]), float(rows.value[row]), int(rows.sinks[row]), int(rows.recent[row]),
            ).tolist()
            for head in range(2)
        ]
        for row, length in enumerate(lengths)
    ]  # fmt: skip
    most = max(len(sets[0]) for sets in expected) if known else None
    found = choose(weights, row_bounds(rows, slice(0, len(lengths)), torch.tensor(lengths), longest, most=most))
    assert [[head.nonzero().flatten().tolist() for head in row] for row in found] == expected


def test_choosing_reads_nothing_from_the_device() -> None:
    """Tensors without contents cannot be read: on a GPU that would be a wait in every layer."""
    rows = DecodeRows(**{
        field.name: getattr(random_rows(3, torch.Generator(), [Mode.TOPK]), field.name).to("meta")
        for field in fields(DecodeRows)
    })  # fmt: skip
    weights, lengths = torch.ones(3, 2, 50, device="meta"), torch.ones(3, dtype=torch.int64, device="meta")
    for most in (None, 0, 20):
        assert choose(weights, row_bounds(rows, slice(0, 3), lengths, 50, most=most)).shape == weights.shape
    assert select_mask(weights, lengths[:, None], 20, sinks=4, recent=4).shape == weights.shape
    several = (lengths[:, None], lengths[:, None])
    assert select_mask(weights, *several, sinks=several[0], recent=4, most=20).shape == weights.shape
    with pytest.raises(RuntimeError, match="meta"):
        select_mask(weights, *several, sinks=4, recent=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_pools_of_fewer_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    inputs = make_layer_inputs([70, 9], kv_heads=4, group=2, head_dim=8, generator=generator)
    inputs = replace(inputs, k_buffer=inputs.k_buffer.to(dtype), v_buffer=inputs.v_buffer.to(dtype))
    rows = random_rows(2, generator, [Mode.TOPK])
    sets = sets_by_an_earlier_layer([70, 9], 150, generator)
    scales = {"k_scale": 0.5, "v_scale": 2.0}
    expected = hybrid_decode(*pool(inputs), HEADS, copied(sets), rows, 0.3, **scales)
    found = hybrid_decode(*pool(inputs), HEADS, copied(sets), rows, 0.3, **scales, impl="batched")
    torch.testing.assert_close(found.out, expected.out, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.attended, expected.attended)


def test_an_implementation_that_there_is_not() -> None:
    inputs = make_layer_inputs([5], kv_heads=4, group=1, head_dim=8)
    rows = random_rows(1, torch.Generator().manual_seed(0), [Mode.TOPK])
    asked = PolicyRows(policy=Policy.WINDOW, layer=0, seeds=(0,))
    with pytest.raises(ValueError, match="impl is 'fast', allowed: 'reference', 'batched'"):
        policy_decode(*pool(inputs), HEADS, TokenSets.empty(1, 4, 5), rows, asked, 0.3, impl="fast")  # type: ignore[arg-type]
