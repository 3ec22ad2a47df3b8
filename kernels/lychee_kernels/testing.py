"""Inputs and one assertion for tests and benchmarks of the ops."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lychee_kernels.layout import DecodeRows, LayerHeads, Mode, TokenSets


def make_rows(
    batch: int,
    *,
    mode: Mode = Mode.TOPK,
    budget: int | list[int] = 8,
    value: float = 0.0,
    sinks: int = 2,
    recent: int = 3,
    dense: list[bool] | None = None,
    audit: bool = False,
) -> DecodeRows:
    """Makes the rows of a batch, all alike but for `budget` and `dense` where a list is given."""
    budgets = budget if isinstance(budget, list) else [budget] * batch
    return DecodeRows(
        mode=torch.full((batch,), int(mode), dtype=torch.int32),
        budget=torch.tensor(budgets, dtype=torch.int32),
        value=torch.full((batch,), value, dtype=torch.float64),
        sinks=torch.full((batch,), sinks, dtype=torch.int32),
        recent=torch.full((batch,), recent, dtype=torch.int32),
        dense=torch.tensor(dense if dense is not None else [False] * batch),
        audit=torch.full((batch,), audit),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """Arguments of `hybrid_decode` for a layer of random keys and values in scattered slots."""

    q: torch.Tensor
    k_buffer: torch.Tensor
    v_buffer: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor


def make_layer_inputs(
    lengths: list[int],
    *,
    kv_heads: int = 3,
    group: int = 3,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> LayerInputs:
    """Draws a pool whose unused slots hold NaN, with the rows' slots scattered over it."""
    total = sum(lengths)
    slots = 2 * total + 5
    shape = (slots, kv_heads, head_dim)
    k_buffer = torch.full(shape, torch.nan, dtype=dtype)
    v_buffer = torch.full(shape, torch.nan, dtype=dtype)
    kv_indices = torch.randperm(slots, generator=generator)[:total]
    k_buffer[kv_indices] = torch.randn(total, kv_heads, head_dim, generator=generator).to(dtype)
    v_buffer[kv_indices] = torch.randn(total, kv_heads, head_dim, generator=generator).to(dtype)
    return LayerInputs(
        q=torch.randn(len(lengths), kv_heads * group, head_dim, generator=generator).to(dtype),
        k_buffer=k_buffer,
        v_buffer=v_buffer,
        kv_indptr=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32),
        kv_indices=kv_indices,
    )


def layer(roles: str, *, reads: dict[int, int] | None = None) -> LayerHeads:
    """Reads roles like "RSR": an R writes the set of its own index, an S reads `reads[head]`, else its own index."""
    reads = reads or {}
    return LayerHeads(
        writes=tuple(h if role == "R" else -1 for h, role in enumerate(roles)),
        reads=tuple(-1 if role == "R" else reads.get(h, h) for h, role in enumerate(roles)),
    )


def poisoned_sets(rows: int, roots: int, capacity: int) -> TokenSets:
    """Makes sets full of positions that no test may end up reading."""
    sets = TokenSets.empty(rows, roots, capacity)
    sets.positions.fill_(2**30)
    sets.counts.fill_(2**30)
    return sets


def assert_close_to_float64(
    actual: torch.Tensor, expected: torch.Tensor, *, eager: torch.Tensor, slack: float = 1e-6
) -> None:
    """Asserts that an implementation errs at most twice as much as low-precision eager does, plus `slack`.

    Args:
        actual: what the implementation under test gave.
        expected: the float64 result.
        eager: what plain torch gives in the precision under test.
        slack: absolute room, for inputs on which eager happens to be exact.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    assert not actual.isnan().any(), "not a number"
    infinite = expected.isinf()  # the log-sum-exp of an empty set
    assert torch.equal(actual[infinite].double(), expected[infinite].double()), "infinite in other places"
    finite = expected[~infinite].double()
    error = (actual[~infinite].double() - finite).abs().max().item()
    allowed = 2 * (eager[~infinite].double() - finite).abs().max().item() + slack
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
