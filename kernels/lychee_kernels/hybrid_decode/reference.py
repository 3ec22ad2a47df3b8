"""The definition of a hybrid decode layer (DESIGN.md 2): rows and heads one by one, in float32 or better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lychee_kernels.hybrid_decode.api import HybridDecode
from lychee_kernels.layout import DecodeRows, LayerHeads, Mode, TokenSets
from lychee_kernels.select_tokens.reference import select_row

if TYPE_CHECKING:
    from collections.abc import Sequence


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sm_scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of a group, q [G, D] over m keys and values [m, D]: output [G, D], log-sum-exp [G], weights [G, m]."""
    scores = q @ keys.T * sm_scale
    lse = scores.logsumexp(-1)
    probabilities = scores.softmax(-1)
    return probabilities @ values, lse, probabilities


def _read(buffer: torch.Tensor, slots: torch.Tensor, head: int) -> torch.Tensor:
    """One head's entries of a pool, [m, D]; those of eight bits travel as bytes, which can be indexed anywhere."""
    raw = buffer.view(torch.uint8) if buffer.itemsize == 1 else buffer
    return raw[slots, head].view(buffer.dtype)


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
) -> HybridDecode:
    """See `lychee_kernels.hybrid_decode`; computes in float64 when q is float64, else in float32."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, kv_heads = q.shape[0], k_buffer.shape[1]
    grouped = q.reshape(batch, kv_heads, -1, q.shape[-1]).to(dtype)  # [B, H, G, D]
    out = torch.zeros_like(grouped)
    lse = torch.full(grouped.shape[:3], -torch.inf, dtype=dtype, device=q.device)
    attended: list[int] = [0] * batch
    recall_sum: list[float] = [0.0] * batch
    recall_heads: list[int] = [0] * batch
    starts: Sequence[int] = kv_indptr.tolist()

    for b in range(batch):
        slots = kv_indices[starts[b] : starts[b + 1]].long()
        for h in range(kv_heads):
            keys, values = _read(k_buffer, slots, h).to(dtype) * k_scale, _read(v_buffer, slots, h).to(dtype) * v_scale
            sparse = heads.reads[h] >= 0 and not bool(rows.dense[b])
            if sparse:
                root = heads.reads[h]
                chosen = sets.positions[b, root, : int(sets.counts[b, root])].long()
                if len(chosen):
                    out[b, h], lse[b, h], _ = _attend(grouped[b, h], keys[chosen], values[chosen], sm_scale)
                attended[b] += len(chosen)
                if bool(rows.audit[b]):
                    full = (grouped[b, h] @ keys.T * sm_scale).logsumexp(-1)
                    recall_sum[b] += float((lse[b, h] - full).double().exp().mean())
                    recall_heads[b] += 1
                continue
            out[b, h], lse[b, h], probabilities = _attend(grouped[b, h], keys, values, sm_scale)
            attended[b] += len(slots)
            if heads.writes[h] >= 0 and not bool(rows.dense[b]):
                mode, budget = Mode(int(rows.mode[b])), int(rows.budget[b])
                kept = (int(rows.sinks[b]), int(rows.recent[b]))
                weights = probabilities.mean(0)
                sets.write(b, heads.writes[h], select_row(weights, mode, budget, float(rows.value[b]), *kept))

    return HybridDecode(
        out=out.reshape(batch, -1, q.shape[-1]).to(q.dtype),
        lse=lse.reshape(batch, -1),
        attended=torch.tensor(attended, dtype=torch.int64, device=q.device),
        recall_sum=torch.tensor(recall_sum, dtype=torch.float64, device=q.device),
        recall_heads=torch.tensor(recall_heads, dtype=torch.int64, device=q.device),
    )
