"""`hybrid_decode` on the CPU: the op's arguments in, compiled loops over the same memory, the op's result out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lychee_kernels.hybrid_decode import HybridDecode
from lychee_sgl.cpu.loops import compiled_layer

if TYPE_CHECKING:
    from lychee_kernels.layout import DecodeRows, LayerHeads, TokenSets

KV_DTYPES = (torch.bfloat16, torch.float32)


def _bits(buffer: torch.Tensor) -> np.ndarray:
    """Views a pool buffer as numpy, bfloat16 as its bits; no copy."""
    bits: np.ndarray = (buffer.view(torch.uint16) if buffer.dtype == torch.bfloat16 else buffer).numpy()
    return bits


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
) -> HybridDecode:
    """Does what `lychee_kernels.hybrid_decode` defines; see there for shapes.

    Scores, softmax and sums are float32, whatever the pool holds. A set's capacity must hold the largest bound among
    the rows. Behind a set's count its old content stays (the count is what says how far to read).

    Raises:
        TypeError: the pool is neither bfloat16 nor float32.
    """
    if k_buffer.dtype not in KV_DTYPES:
        raise TypeError(f"the KV pool is {k_buffer.dtype}, on the CPU allowed: bfloat16, float32")
    batch, kv_heads, head_dim = q.shape[0], k_buffer.shape[1], q.shape[-1]
    group = q.shape[1] // kv_heads
    out = torch.empty((batch, kv_heads, group, head_dim), dtype=torch.float32)
    lse = torch.empty((batch, kv_heads, group), dtype=torch.float32)
    attended = torch.zeros(batch, dtype=torch.int64)
    recall_sum = torch.zeros(batch, dtype=torch.float64)
    recall_heads = torch.zeros(batch, dtype=torch.int64)
    compiled_layer(group, head_dim)(
        q.reshape(batch, kv_heads, group, head_dim).float().contiguous().numpy(),
        _bits(k_buffer),
        _bits(v_buffer),
        kv_indptr.numpy(),
        kv_indices.numpy(),
        np.array(heads.writes, np.int64),
        np.array(heads.reads, np.int64),
        sets.positions.numpy(),
        sets.counts.numpy(),
        *(t.numpy() for t in (rows.mode, rows.budget, rows.value, rows.sinks, rows.recent, rows.dense, rows.audit)),
        np.float32(sm_scale),
        *(t.numpy() for t in (out, lse, attended, recall_sum, recall_heads)),
    )
    return HybridDecode(
        out=out.reshape(batch, -1, head_dim).to(q.dtype),
        lse=lse.reshape(batch, -1),
        attended=attended,
        recall_sum=recall_sum,
        recall_heads=recall_heads,
    )
