"""How the heads of a model, and so of its plan, lie on the ranks of a tensor-parallel engine (DESIGN.md 12).

Standard library only.
"""

from __future__ import annotations

from lychee_sgl.heads.plan import Head, HeadPlan, ModelShape, PlanError


def check_tp(shape: ModelShape, tp: int) -> None:
    """Refuse a number of ranks over which SGLang cannot shard the heads of a model.

    Raises:
        PlanError: names the shape, the number and what is allowed.
    """
    if not _shards(shape, tp):
        raise PlanError(f"tensor parallel size is {tp}; allowed for {shape}: {_listed(shardable_sizes(shape))}")


def _shards(shape: ModelShape, tp: int) -> bool:
    queries, heads = shape.num_attention_heads, shape.num_key_value_heads
    return tp >= 1 and queries % tp == 0 and (heads % tp == 0 or tp % heads == 0)


def shardable_sizes(shape: ModelShape) -> tuple[int, ...]:
    """The numbers of ranks over which SGLang can shard the heads of a model, rising."""
    return tuple(tp for tp in range(1, shape.num_attention_heads + 1) if _shards(shape, tp))


def rank_heads(kv_heads: int, tp: int, rank: int) -> range:
    """The KV heads of one rank: its share, or the one of which it has a copy.

    Args:
        kv_heads: of a layer.
        tp: ranks; `check_tp` has let them through.
        rank: from 0.
    """
    if tp >= kv_heads:
        head = rank * kv_heads // tp
        return range(head, head + 1)
    share = kv_heads // tp
    return range(rank * share, (rank + 1) * share)


def rank_of(head: int, kv_heads: int, tp: int) -> int:
    """The (first) rank that has a KV head."""
    return head * tp // kv_heads


def crossing(plan: HeadPlan, tp: int) -> tuple[Head, ...]:
    """The sparse heads whose root lies on another rank, sorted.

    Raises:
        PlanError: the model cannot be sharded so.
    """
    check_tp(plan.model, tp)
    heads = plan.model.num_key_value_heads
    return tuple(
        head for head in plan.sparse_heads() if rank_of(head[1], heads, tp) != rank_of(plan.root(*head)[1], heads, tp)
    )


def allowed_sizes(plan: HeadPlan) -> tuple[int, ...]:
    """The numbers of ranks that a plan can be served on, rising."""
    return tuple(tp for tp in shardable_sizes(plan.model) if not crossing(plan, tp))


def check_plan(plan: HeadPlan, tp: int, *, path: str | None = None) -> None:
    """Refuse a plan in which a sparse head reads the set of another rank.

    Args:
        plan: the plan.
        tp: ranks.
        path: its file, for the command that mends it.

    Raises:
        PlanError: the model cannot be sharded so, or sets would cross; says how many, and the command.
    """
    crosses = crossing(plan, tp)
    if crosses:
        first, root = crosses[0], plan.root(*crosses[0])
        mend = f"lychee-sgl heads shard {path or plan.model.base_name} --tp {tp} --out plan-tp{tp}.json"
        raise PlanError(
            f"head plan {plan.name!r} on {tp} ranks: {len(crosses)} sparse heads read the set of a head on another "
            f"rank, the first is {first[0]}.{first[1]}, which reads {root[0]}.{root[1]}; allowed for this plan: "
            f"{_listed(allowed_sizes(plan))}. Mend it with `{mend}` and serve that with --heads"
        )


def retrieval_by_rank(plan: HeadPlan, tp: int) -> tuple[tuple[int, ...], ...]:
    """Retrieval heads of each layer on each rank: one tuple a layer."""
    heads = plan.model.num_key_value_heads
    ranks = [rank_heads(heads, tp, rank) for rank in range(tp)]
    return tuple(tuple(sum(row[head] == "R" for head in mine) for mine in ranks) for row in plan.roles)


def pace(plan: HeadPlan, tp: int) -> float:
    """How much longer than balanced the plan's retrieval heads take on so many ranks; 1 is balanced (DESIGN.md 12)."""
    counts = retrieval_by_rank(plan, tp)
    return sum(max(layer) for layer in counts) * tp / sum(sum(layer) for layer in counts)


def _listed(sizes: tuple[int, ...]) -> str:
    return ", ".join(str(size) for size in sizes)
