"""What fits: weights, KV pool, our workspace, graphs, on each rank's GPU.

Of the memory, SGLang gives `fraction` to weights and KV pool together; the rest is for activations, graphs, NCCL and
our workspace, which has to fit beside a reserve for the others. The workspace follows the pool's size (DESIGN.md 9), so
the pool shrinks where the rest is too small for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lychee_sgl.capacity.sizes import GIB
from lychee_sgl.heads.ranks import check_tp, rank_heads

if TYPE_CHECKING:
    from lychee_sgl.capacity.sizes import Gpu, ModelSizes

CONTEXT_GIB: Final = 1.0
"""CUDA's context and libraries, gone before SGLang counts what is free."""
GRAPH_GIB: Final = 2.5
"""Activations of a prefill chunk, two graphs for each batch size, NCCL's buffers."""
FRACTION: Final = 0.88
MAX_ROWS: Final = 512
MOST_WEIGHT_BYTES: Final = 8
BINS, CHUNK, SCORE_SHARE, PROGRAMS = 512, 2048, 0.005, 2
"""The kernels' constants (`lychee_kernels/work.py`, `lychee_sgl/backend/gpu_attention.py`): a test holds them to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The part of a head plan that takes memory on a rank: its sets, and most sets that one layer writes."""

    roots: int
    writers: int


def half_of_the_heads(model: ModelSizes, tp: int) -> Heads:
    """A plan with half of its heads retrieving, which needs more sets than a measured one: the heuristic's."""
    local = len(rank_heads(model.shape.num_key_value_heads, tp, 0))
    return Heads(roots=model.shape.num_hidden_layers * (local + 1) // 2, writers=local)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What the kernels keep beside the pool, on one rank."""

    bytes: int
    score_tokens: int
    set_tokens: int


def workspace(model: ModelSizes, heads: Heads, *, tp: int, tokens: int, context: int, processors: int) -> Workspace:
    """Counts as `lychee_kernels.work.Workspace.empty` allocates.

    Args:
        model: the model.
        heads: of one rank.
        tp: ranks.
        tokens: the KV pool's.
        context: the longest context.
        processors: of the GPU.
    """
    shape = model.shape
    local = len(rank_heads(shape.num_key_value_heads, tp, 0))
    group = shape.num_attention_heads // tp // local
    writers, roots, rows = max(1, heads.writers), max(1, heads.roots), MAX_ROWS
    pool = tokens * model.token_bytes(tp)
    scores = -(-max(context, int(pool * SCORE_SHARE / (writers * (2 * group + 2)))) // 16) * 16
    scores = min(rows * context, scores)
    sets = min(scores, max(tokens, context))
    slots = 2 * (PROGRAMS * processors + 3 * rows * local)
    chunks = scores // CHUNK + rows
    total = slots * group * (shape.head_dim + 1) * 4
    total += writers * (group * scores * 2 + scores * 2 + rows * BINS * (4 + 8) + chunks * BINS * 2 + chunks * 8)
    total += writers * (rows * (4 + 4) + chunks * 2 * 4)
    total += roots * (sets * (4 + 4) + rows * 4)
    total += rows * shape.num_hidden_layers * local * group * 4
    return Workspace(bytes=total, score_tokens=scores, set_tokens=sets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What fits on the GPUs; bytes are of one GPU.

    Attributes:
        weights: bytes of the weights.
        pool_tokens: tokens of the KV pool.
        pool: its bytes.
        workspace: ours.
        rows: requests of this context that the pool holds.
        sparse_rows: how many of them can run sparse in one step; the others run dense (fallback `workspace`).
    """

    weights: int
    pool_tokens: int
    pool: int
    workspace: Workspace
    rows: int
    sparse_rows: int


def capacity(
    model: ModelSizes,
    gpu: Gpu,
    *,
    tp: int = 1,
    context: int,
    budget: int = 4096,
    heads: Heads | None = None,
    fraction: float = FRACTION,
    weight_bytes: float = 2.0,
) -> Capacity:
    """Computes what fits.

    Args:
        model: the model.
        gpu: of which there are `tp`.
        tp: ranks.
        context: tokens of a request, answer included.
        budget: tokens that a sparse head reads.
        heads: of the head plan; half of the heads by default.
        fraction: SGLang's `--mem-fraction-static`.
        weight_bytes: of one weight; KV entries have two.

    Returns:
        The capacity; `rows` is 0 where weights or a single context do not fit.

    Raises:
        PlanError: the model's heads cannot be shared among so many ranks.
        ValueError: context, budget, fraction or weight_bytes is out of range.
    """
    check_tp(model.shape, tp)
    if context < 1 or not budget >= 1:
        raise ValueError(f"context is {context} and budget {budget}, allowed: whole numbers above 0")
    if not 0 < fraction < 1:
        raise ValueError(f"the memory's fraction is {fraction}, allowed: a number between 0 and 1")
    if not 0 < weight_bytes <= MOST_WEIGHT_BYTES:
        raise ValueError(f"bytes of a weight are {weight_bytes}, allowed: a number above 0 to {MOST_WEIGHT_BYTES}")
    heads = half_of_the_heads(model, tp) if heads is None else heads
    memory = int((gpu.memory_gib - CONTEXT_GIB) * GIB)
    weights = int(model.parameters * weight_bytes / tp)
    token = model.token_bytes(tp)

    def ours(tokens: int) -> Workspace:
        return workspace(model, heads, tp=tp, tokens=tokens, context=context, processors=gpu.processors)

    def fits(tokens: int) -> bool:
        return weights + tokens * token + ours(tokens).bytes + int(GRAPH_GIB * GIB) <= memory

    high = max(0, int(memory * fraction) - weights) // token
    low = 0
    while low < high:  # the largest pool that leaves room for the workspace it brings
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    found = ours(low)
    rows = low // context
    by_sets = found.set_tokens // min(budget, context)
    return Capacity(
        weights=weights,
        pool_tokens=low,
        pool=low * token,
        workspace=found,
        rows=rows,
        sparse_rows=min(rows, MAX_ROWS, found.score_tokens // context, by_sets),
    )
