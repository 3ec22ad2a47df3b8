"""`hybrid_decode`: signature, validation and dispatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lychee_kernels.checks import check_shapes

if TYPE_CHECKING:
    import torch

    from lychee_kernels.layout import DecodeRows, LayerHeads, TokenSets


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridDecode:
    """What one layer of a decode step gives.

    Attributes:
        out: [B, H*G, D], in the dtype of q.
        lse: float32 or float64 [B, H*G], log-sum-exp (natural) of the scaled scores over what each query head read.
        attended: int64 [B], KV entries read, over the layer's heads.
        recall_sum: float64 [B], sum over the sparse heads of the group's mean attention mass that the set held; 0 where
            the row was not audited or ran dense.
        recall_heads: int64 [B], how many heads went into `recall_sum`.
    """

    out: torch.Tensor
    lse: torch.Tensor
    attended: torch.Tensor
    recall_sum: torch.Tensor
    recall_heads: torch.Tensor


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
    impl: Literal["reference", "batched", "triton"] = "reference",
) -> HybridDecode:
    """Decodes one layer with mixed head roles over SGLang's paged pool (DESIGN.md 2).

    Query heads are grouped: query head h*G + g reads KV head h. A retrieval head with `heads.writes[h] >= 0` writes its
    set into `sets` in place; a sparse head reads the set `heads.reads[h]`, which an earlier layer of this step wrote.
    An empty set gives zeros and a log-sum-exp of -inf.

    Args:
        q: [B, H*G, D].
        k_buffer: [slots, H, D], keys of this layer, the current token's included; any float, float8 too.
        v_buffer: [slots, H, D].
        kv_indptr: [B+1]; the slot of position p of row b is `kv_indices[kv_indptr[b] + p]`.
        kv_indices: [sum of lengths].
        heads: roles of this layer.
        sets: the step's sets, [B, R, C].
        rows: budgets, modes, which rows are dense or audited.
        sm_scale: factor of the scores, usually D ** -0.5.
        k_scale: a key is what the pool holds times this.
        v_scale: likewise a value.
        impl: which implementation: the definition, the same for all rows at once in torch, or Triton's kernels.

    Returns:
        Output, log-sum-exp and counts.

    Raises:
        ValueError: shapes disagree or `impl` is unknown.
    """
    sizes = check_shapes(
        {
            "k_buffer": (k_buffer, ("slots", len(heads.reads), "D")),
            "v_buffer": (v_buffer, ("slots", len(heads.reads), "D")),
            "q": (q, ("B", "HG", "D")),
            "rows.mode": (rows.mode, ("B",)),
            "sets.positions": (sets.positions, ("B", "R", "C")),
            "sets.counts": (sets.counts, ("B", "R")),
        }
    )
    if sizes["HG"] % len(heads.reads):
        raise ValueError(f"q has {sizes['HG']} query heads, not a multiple of the {len(heads.reads)} KV heads")
    if kv_indptr.shape != (sizes["B"] + 1,):
        raise ValueError(f"kv_indptr has shape {tuple(kv_indptr.shape)}, expected ({sizes['B'] + 1},)")
    match impl:
        case "reference":
            from lychee_kernels.hybrid_decode import reference

            run = reference.hybrid_decode
        case "batched":
            from lychee_kernels.hybrid_decode import batched

            run = batched.hybrid_decode
        case "triton":
            from lychee_kernels.hybrid_decode import triton

            run = triton.hybrid_decode
        case _:
            raise ValueError(f"impl is {impl!r}, allowed: 'reference', 'batched', 'triton'")
    pool = (k_buffer, v_buffer, kv_indptr, kv_indices)
    return run(q, *pool, heads, sets, rows, sm_scale, k_scale=k_scale, v_scale=v_scale)
