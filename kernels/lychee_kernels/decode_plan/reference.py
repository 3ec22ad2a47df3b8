"""The definition of a step's decisions and of its partition, in torch."""

from __future__ import annotations

import torch

from lychee_kernels.decode_plan.api import DENSE, Fallback, Param, PlanRules, RowDecisions
from lychee_kernels.layout import DecodeRows, Mode, kept_window, set_bounds
from lychee_kernels.work import DecodePlan, Row, WorkShape


def decide_rows(
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    params: torch.Tensor,
    values: torch.Tensor,
    rules: PlanRules,
) -> RowDecisions:
    """See `lychee_kernels.decode_plan.decide_rows`."""
    asked = params[req_pool_indices.long()]
    value = values[req_pool_indices.long()]
    mode, budget, lengths = asked[:, Param.MODE], asked[:, Param.BUDGET], seq_lens.to(torch.int32)
    wants_dense = budget == DENSE
    bound = set_bounds(mode, budget, value, lengths)
    short = ~wants_dense & (lengths <= rules.dense_below)
    by_number = (mode == int(Mode.TOPK)) | (mode == int(Mode.RATIO))
    covers = ~wants_dense & ~short & by_number & (bound >= lengths)
    fallback = short * int(Fallback.DENSE_BELOW) + covers * int(Fallback.BUDGET_COVERS_CONTEXT)
    dense = wants_dense | short | covers
    step = lengths - asked[:, Param.PROMPT] - 1
    audit = ~dense & (step % rules.recall_every == 0) if rules.recall_every else torch.zeros_like(dense)
    rows = DecodeRows(
        mode=mode,
        budget=budget.clamp(min=0),
        value=value,
        sinks=asked[:, Param.SINKS],
        recent=asked[:, Param.RECENT],
        dense=dense,
        audit=audit,
    )
    return RowDecisions(
        rows=rows, fallback=fallback.to(torch.int32), bound=torch.where(wants_dense, budget, bound).to(torch.int32)
    )


def _blocks_and_items(row: list[int], retrieval: int, shape: WorkShape, span: int) -> tuple[int, int]:
    """Blocks and items of one row in a layer with so many retrieval heads."""
    dense, sparse = bool(row[Row.DENSE]), shape.kv_heads - retrieval
    full, chosen = -(-row[Row.LENGTH] // shape.block), -(-row[Row.BOUND] // shape.block)
    readers = shape.kv_heads if dense else retrieval + (sparse if row[Row.AUDIT] else 0)
    blocks = readers * full + (0 if dense else sparse * chosen)
    items = readers * -(-full // span) + (0 if dense else sparse * -(-chosen // span))
    return blocks, items


def plan_decode(
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    params: torch.Tensor,
    values: torch.Tensor,
    rules: PlanRules,
    shape: WorkShape,
    plan: DecodePlan,
) -> None:
    """See `lychee_kernels.decode_plan.plan_decode`; row by row on the host."""
    decided = decide_rows(req_pool_indices, seq_lens, params, values, rules)
    rows, set_start, score_start, kv_start, chunk_start = decided.rows, 0, 0, 0, 0
    plan.kv_indptr[0] = plan.chunk_ptr[0] = 0
    for b, length in enumerate(seq_lens.tolist()):
        dense, fallback = bool(rows.dense[b]), int(decided.fallback[b])
        bound = length if dense else int(decided.bound[b])
        starts = (0, 0)
        if not dense:
            starts = (set_start, score_start)
            set_start, score_start = set_start + bound, score_start + length
            if set_start > rules.set_capacity or score_start > rules.score_capacity:
                dense, fallback, starts, bound = True, int(Fallback.WORKSPACE), (0, 0), length
        window = (int(rows.sinks[b]), int(rows.recent[b]))
        if bound < length:
            window = kept_window(bound, *window)
        plan.rows[b] = 0
        fields = {
            Row.LENGTH: length,
            Row.DENSE: int(dense),
            Row.AUDIT: int(bool(rows.audit[b]) and not dense),
            Row.BOUND: bound,
            Row.SINKS: min(window[0], length),
            Row.RECENT: min(max(window[1], 1), length),
            Row.MODE: int(rows.mode[b]),
            Row.SET_START: starts[0],
            Row.SCORE_START: starts[1],
            Row.FALLBACK: fallback,
            Row.BUDGET: int(decided.bound[b]),
        }
        for column, number in fields.items():
            plan.rows[b, column] = number
        plan.values[b] = rows.value[b]
        kv_start, chunk_start = kv_start + length, chunk_start + (0 if dense else -(-length // shape.chunk))
        plan.kv_indptr[b + 1], plan.chunk_ptr[b + 1] = kv_start, chunk_start

    table = plan.rows[: len(seq_lens)].tolist()
    for p, retrieval in enumerate(shape.patterns):
        total = sum(_blocks_and_items(row, retrieval, shape, 1)[0] for row in table)
        span = max(1, -(-total // shape.programs))
        plan.span[p] = span
        plan.block_ptr[p, 0] = plan.item_ptr[p, 0] = 0
        for b, row in enumerate(table):
            blocks, items = _blocks_and_items(row, retrieval, shape, span)
            plan.block_ptr[p, b + 1] = plan.block_ptr[p, b] + blocks
            plan.item_ptr[p, b + 1] = plan.item_ptr[p, b] + items
