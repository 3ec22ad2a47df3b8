"""`plan_decode` and `decide_rows`: signatures, validation and dispatch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

from lychee_kernels.checks import check_shapes

if TYPE_CHECKING:
    import torch

    from lychee_kernels.layout import DecodeRows
    from lychee_kernels.work import DecodePlan, WorkShape

DENSE = -1
"""A row's budget when every head reads everything."""


class Param(IntEnum):
    """Columns of a row table, int32 [max_reqs + 1, 5], indexed by `req_pool_indices` (DESIGN.md 3)."""

    MODE = 0
    BUDGET = 1
    SINKS = 2
    RECENT = 3
    PROMPT = 4


class Fallback(IntEnum):
    """Why a row with a sparse budget ran a step dense (DESIGN.md 2.2)."""

    NONE = 0
    DENSE_BELOW = 1
    BUDGET_COVERS_CONTEXT = 2
    WORKSPACE = 3


class Report(IntEnum):
    """Lines of a step's report, float64 [5, B]; recall is NaN where the row was not audited."""

    ATTENDED = 0
    RECALL = 1
    FALLBACK = 2
    BUDGET = 3
    CONTEXT = 4


SUMMED = (Report.ATTENDED, Report.RECALL)
"""The first lines of a report: what is added up where several devices share the heads. The others are equal on all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRules:
    """What is the same for all rows.

    Attributes:
        dense_below: contexts up to this length run dense.
        recall_every: one decode step in so many is audited; 0 for none.
        set_capacity: tokens that the sets of one root may hold over all rows; rows that no longer fit run dense.
        score_capacity: tokens of context that the sparse rows may have together; likewise.
    """

    dense_below: int = 0
    recall_every: int = 0
    set_capacity: int = 2**31 - 1
    score_capacity: int = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDecisions:
    """How the rows of one decode step run.

    Attributes:
        rows: what the ops need.
        fallback: int32 [B], a `Fallback`.
        bound: int32 [B], tokens a set may hold at this length; `DENSE` for a request that asked for dense.
    """

    rows: DecodeRows
    fallback: torch.Tensor
    bound: torch.Tensor


def decide_rows(
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    params: torch.Tensor,
    values: torch.Tensor,
    rules: PlanRules,
) -> RowDecisions:
    """Decides how each row of a decode batch runs (DESIGN.md 2.2); torch ops only, no host round trip.

    Args:
        req_pool_indices: [B] slots.
        seq_lens: [B] context lengths, the current token included.
        params: int32 [max_reqs + 1, 5], columns as in `Param`.
        values: float64 [max_reqs + 1].
        rules: what is the same for all rows; the capacities are not looked at here.

    Returns:
        The decisions; what the GPU's `plan_decode` writes agrees with them.

    Raises:
        ValueError: shapes disagree.
    """
    check_shapes(
        {
            "req_pool_indices": (req_pool_indices, ("B",)),
            "seq_lens": (seq_lens, ("B",)),
            "params": (params, ("slots", len(Param))),
            "values": (values, ("slots",)),
        }
    )
    from lychee_kernels.decode_plan import reference

    return reference.decide_rows(req_pool_indices, seq_lens, params, values, rules)


def plan_decode(
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    params: torch.Tensor,
    values: torch.Tensor,
    rules: PlanRules,
    shape: WorkShape,
    plan: DecodePlan,
    *,
    impl: Literal["reference", "triton"] = "triton",
) -> None:
    """Decides the rows of a step and cuts up the work of its layers, into `plan`.

    Args:
        req_pool_indices: [B] integer slots.
        seq_lens: [B] integer context lengths, the current token included.
        params: int32 [max_reqs + 1, 5], columns as in `Param`.
        values: float64 [max_reqs + 1].
        rules: what is the same for all rows.
        shape: what the kernels are compiled for.
        plan: overwritten for B rows; what lies behind them is not touched.
        impl: which implementation.

    Raises:
        ValueError: shapes disagree, B is larger than the plan, or `impl` is unknown.
    """
    sizes = check_shapes(
        {
            "req_pool_indices": (req_pool_indices, ("B",)),
            "seq_lens": (seq_lens, ("B",)),
            "params": (params, ("slots", len(Param))),
            "values": (values, ("slots",)),
            "plan.span": (plan.span, (len(shape.patterns),)),
        }
    )
    if sizes["B"] > plan.rows.shape[0]:
        raise ValueError(f"{sizes['B']} rows do not fit a plan for {plan.rows.shape[0]}")
    match impl:
        case "reference":
            from lychee_kernels.decode_plan import reference

            reference.plan_decode(req_pool_indices, seq_lens, params, values, rules, shape, plan)
        case "triton":
            from lychee_kernels.decode_plan import triton

            triton.plan_decode(req_pool_indices, seq_lens, params, values, rules, shape, plan)
        case _:
            raise ValueError(f"impl is {impl!r}, allowed: 'reference', 'triton'")
