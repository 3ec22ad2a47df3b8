"""One layer of a decode step on a GPU: attend and merge; and where a set is written, weigh and compact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton

from lychee_kernels.decode_plan.api import DENSE, Param, PlanRules
from lychee_kernels.decode_plan.triton import plan_decode
from lychee_kernels.hybrid_decode.api import HybridDecode
from lychee_kernels.hybrid_decode.attend import attend_kernel
from lychee_kernels.hybrid_decode.merge import merge_kernel
from lychee_kernels.select_tokens.compact import compact_kernel
from lychee_kernels.select_tokens.histogram import count_scores_kernel
from lychee_kernels.work import BINS, DecodePlan, LayerTable, Row, WorkShape, Workspace, lanes

if TYPE_CHECKING:
    from lychee_kernels.layout import DecodeRows, LayerHeads, TokenSets


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the kernels are launched; the defaults are for Hopper.

    Attributes:
        warps: of the attention kernel.
        stages: depth of its pipeline of loads; with 3, one block is under way while another is worked on.
        registers: most that its threads may have; None leaves it to the compiler.
        parts: parts of a list that a merging program reads at a time.
        columns: of the output that it merges.
        count_programs: programs that weigh, and that compact.
        count_warps: theirs.
    """

    warps: int = 4
    stages: int = 3
    registers: int | None = None
    parts: int = 128
    columns: int = 64
    count_programs: int = 1056
    count_warps: int = 4


def attend_layer(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    kv_indices: torch.Tensor,
    layer: LayerTable,
    plan: DecodePlan,
    workspace: Workspace,
    shape: WorkShape,
    sm_scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    recall: torch.Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    launch: Launch,
) -> None:
    """Attention of one layer by a plan; every argument stays where it is, so the launches can be captured.

    Args:
        q: [B, H*G, D].
        k_buffer: [slots, H, D] of this layer, the current token's key included; of 16 bits, or float8 (e4m3fn, e5m2).
        v_buffer: [slots, H, D].
        kv_indices: int32; the slot of position p of row b is `kv_indices[plan.kv_indptr[b] + p]`.
        layer: roles of this layer.
        plan: of this step.
        workspace: sets are read from it; scores are left in it.
        shape: what the plan was made for.
        sm_scale: factor of the scores.
        out: [B, H*G, D], overwritten.
        lse: float32 [B, H*G], overwritten with natural log-sum-exps.
        recall: float32 [B, H*G] (rows may be strided), where audited rows leave the mass that a sparse head's set held;
            without it nothing is audited.
        k_scale: a key is what the pool holds times this.
        v_scale: likewise a value.
        launch: how to launch.
    """
    batch = q.shape[0]
    common = {
        "HEADS": shape.kv_heads,
        "GROUP": shape.group,
        "GROUP_PAD": 16,
        "HEAD_DIM": shape.head_dim,
        "BLOCK": shape.block,
        "AUDITS": recall is not None and layer.retrieval < shape.kv_heads,
    }
    span, items = plan.span[layer.pattern :], plan.item_ptr[layer.pattern]
    attend_kernel[(shape.programs,)](
        q,
        k_buffer,
        v_buffer,
        workspace.partial,
        workspace.partial_lse,
        workspace.scores,
        workspace.histogram,
        workspace.mass,
        workspace.finished,
        plan.rows,
        plan.kv_indptr,
        kv_indices,
        workspace.set_slots,
        workspace.set_counts,
        layer.heads,
        plan.block_ptr[layer.pattern],
        items,
        span,
        batch,
        sm_scale * k_scale * math.log2(math.e),
        k_buffer.stride(0),
        workspace.set_slots.stride(0),
        workspace.scores.stride(0),
        workspace.set_counts.stride(0),
        workspace.histogram.stride(0),
        layer.retrieval,
        layer.writers,
        WRITES=layer.writers > 0,
        LANES=lanes(len(plan.rows)),
        BINS=BINS,
        STAGES=launch.stages,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=launch.warps,
        maxnreg=launch.registers,
        **common,
    )
    merge_kernel[(batch * shape.kv_heads * shape.group, shape.head_dim // launch.columns)](
        out,
        lse,
        out if recall is None else recall,
        workspace.partial,
        workspace.partial_lse,
        plan.rows,
        layer.heads,
        items,
        span,
        0 if recall is None else recall.stride(0),
        layer.retrieval,
        v_scale,
        PARTS=launch.parts,
        COLUMNS=launch.columns,
        SCALED=v_scale != 1.0,
        num_warps=4,
        **common,
    )


def select_layer(
    lse: torch.Tensor,
    kv_indices: torch.Tensor,
    layer: LayerTable,
    plan: DecodePlan,
    workspace: Workspace,
    shape: WorkShape,
    *,
    max_context: int,
    launch: Launch,
) -> None:
    """Writes the sets of one layer's writers, from the scores that `attend_layer` has left.

    Args:
        lse: float32 [B, H*G], what `attend_layer` wrote.
        kv_indices: as there.
        layer: roles of this layer.
        plan: of this step.
        workspace: overwritten are the sets that this layer writes.
        shape: what the plan was made for.
        max_context: longest context that a row may have.
        launch: how to launch.
    """
    batch = lse.shape[0]
    count_scores_kernel[(launch.count_programs,)](
        workspace.scores,
        lse,
        workspace.keys,
        workspace.histogram,
        workspace.mass,
        workspace.chunk_counts,
        workspace.chunk_mass,
        workspace.finished,
        workspace.borders,
        workspace.chunk_starts,
        workspace.set_counts,
        plan.rows,
        plan.values,
        layer.heads,
        plan.chunk_ptr,
        batch,
        workspace.scores.stride(0),
        workspace.histogram.stride(0),
        workspace.chunk_mass.stride(0),
        workspace.set_counts.stride(0),
        layer.writers,
        HEADS=shape.kv_heads,
        GROUP=shape.group,
        CHUNK=shape.chunk,
        CHUNKS=max(16, triton.next_power_of_2(-(-max_context // shape.chunk))),
        BINS=BINS,
        LANES=lanes(len(plan.rows)),
        num_warps=launch.count_warps,
    )
    compact(layer, plan, workspace, shape, kv_indices, batch, launch=launch)


def compact(
    layer: LayerTable,
    plan: DecodePlan,
    workspace: Workspace,
    shape: WorkShape,
    kv_indices: torch.Tensor | None,
    batch: int,
    *,
    launch: Launch,
) -> None:
    """Writes the sets whose weights have been counted; without `kv_indices` their positions alone."""
    compact_kernel[(launch.count_programs,)](
        workspace.keys,
        workspace.borders,
        workspace.chunk_starts,
        plan.rows,
        plan.chunk_ptr,
        layer.heads,
        plan.kv_indptr,
        plan.kv_indptr if kv_indices is None else kv_indices,
        workspace.set_positions,
        workspace.set_slots,
        batch,
        workspace.set_positions.stride(0),
        workspace.keys.stride(0),
        workspace.chunk_mass.stride(0),
        workspace.borders.stride(0),
        layer.writers,
        CHUNK=shape.chunk,
        LANES=lanes(len(plan.rows)),
        WITH_SLOTS=kv_indices is not None,
        num_warps=launch.count_warps,
    )


def row_tables(rows: DecodeRows, seq_lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns decided rows back into row tables, for callers that have no server around them.

    Returns:
        params int32 [B, 5] and values float64 [B]; with `recall_every` of 2**30 exactly the audited rows are audited.
    """
    lengths = seq_lens.to(torch.int32)
    columns = {
        Param.MODE: rows.mode,
        Param.BUDGET: torch.where(rows.dense, DENSE, rows.budget),
        Param.SINKS: rows.sinks,
        Param.RECENT: rows.recent,
        Param.PROMPT: lengths - torch.where(rows.audit, 1, 2),
    }
    return torch.stack([columns[param].to(torch.int32) for param in Param], 1).contiguous(), rows.value


def hybrid_decode(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    heads: LayerHeads,
    sets: TokenSets,
    rows: DecodeRows,
    sm_scale: float,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    shape: WorkShape | None = None,
    launch: Launch | None = None,
) -> HybridDecode:
    """See `lychee_kernels.hybrid_decode`: plans, allocates and runs one layer. Servers keep plan and workspace."""
    batch, kv_heads, roots = len(q), len(heads.reads), sets.counts.shape[1]
    seq_lens = (kv_indptr[1:] - kv_indptr[:-1]).to(torch.int64)
    retrieval = kv_heads - heads.sparse
    shape = shape or WorkShape(
        kv_heads=kv_heads,
        group=q.shape[1] // kv_heads,
        head_dim=q.shape[-1],
        block=128,
        programs=264,
        chunk=1024,
        patterns=(retrieval,),
    )
    layer = LayerTable.build(heads, shape.patterns, q.device)
    total, longest = int(seq_lens.sum()), int(seq_lens.max())
    params, values = row_tables(rows, seq_lens)
    plan = DecodePlan.empty(batch, len(shape.patterns), q.device)
    plan_decode(
        torch.arange(batch, device=q.device), seq_lens, params, values, PlanRules(recall_every=2**30), shape, plan
    )
    workspace = Workspace.empty(
        shape,
        max_rows=batch,
        layers=1,
        roots=roots,
        writers=layer.writers,
        set_capacity=total,
        score_capacity=total,
        device=q.device,
    )
    slots = kv_indices.to(torch.int32)
    _load_sets(sets, plan, workspace, slots)
    # poisoned where nothing is written: kernels must write all of it
    out = torch.full_like(q, torch.nan)
    lse = torch.full(q.shape[:2], torch.nan, dtype=torch.float32, device=q.device)
    recall = workspace.recall[:, 0]
    launch = launch or Launch()
    attend_layer(
        q.contiguous(),
        k_buffer,
        v_buffer,
        slots,
        layer,
        plan,
        workspace,
        shape,
        sm_scale,
        out,
        lse,
        recall=recall,
        k_scale=k_scale,
        v_scale=v_scale,
        launch=launch,
    )
    if layer.writers:
        select_layer(lse, slots, layer, plan, workspace, shape, max_context=longest, launch=launch)
    _store_sets(sets, heads, plan, workspace)
    return _result(out, lse, recall, heads, sets, plan, seq_lens)


def _load_sets(sets: TokenSets, plan: DecodePlan, workspace: Workspace, slots: torch.Tensor) -> None:
    for b, root in ((b, r) for b in range(sets.counts.shape[0]) for r in range(sets.counts.shape[1])):
        start, count = int(plan.rows[b, Row.SET_START]), int(sets.counts[b, root])
        if not plan.rows[b, Row.DENSE] and count <= int(plan.rows[b, Row.BOUND]):
            positions = sets.positions[b, root, :count]
            workspace.set_counts[b, root] = count
            workspace.set_slots[root, start : start + count] = slots[plan.kv_indptr[b] + positions.long()]


def _store_sets(sets: TokenSets, heads: LayerHeads, plan: DecodePlan, workspace: Workspace) -> None:
    for b in range(sets.counts.shape[0]):
        for root in (w for w in heads.writes if w >= 0 and not plan.rows[b, Row.DENSE]):
            start, count = int(plan.rows[b, Row.SET_START]), int(workspace.set_counts[b, root])
            sets.positions[b, root] = -1
            sets.positions[b, root, :count] = workspace.set_positions[root, start : start + count]
            sets.counts[b, root] = count


def _result(
    out: torch.Tensor,
    lse: torch.Tensor,
    recall: torch.Tensor,
    heads: LayerHeads,
    sets: TokenSets,
    plan: DecodePlan,
    seq_lens: torch.Tensor,
) -> HybridDecode:
    batch, group = len(out), out.shape[1] // len(heads.reads)
    dense = plan.rows[:batch, Row.DENSE].bool()
    audited = plan.rows[:batch, Row.AUDIT].bool()
    attended = seq_lens * torch.where(dense, len(heads.reads), len(heads.reads) - heads.sparse)
    for root in (r for r in heads.reads if r >= 0):
        attended += torch.where(dense, 0, sets.counts[:, root])
    mass = recall.double().reshape(batch, -1, group).mean(-1).sum(-1)
    return HybridDecode(
        out=out,
        lse=lse,
        attended=attended,
        recall_sum=torch.where(audited, mass, 0.0),
        recall_heads=torch.where(audited, heads.sparse, 0).to(torch.int64),
    )
