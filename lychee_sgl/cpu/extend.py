"""Dense attention of new tokens over prefix and themselves on the CPU, each part computed once.

SGLang's own CPU backend pads the new queries to the whole context and so computes the prefix's attention again. Here
the new tokens attend to the prefix without a mask and to themselves with a causal one, and the two parts are merged by
their log-sum-exp: the work is that of the new tokens alone.
"""

from __future__ import annotations

import torch

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sm_scale: float, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flash attention, q [H, G, t, D] over keys and values [H, m, D]: output [H, G, t, D], log-sum-exp [H, G, t]."""
    shape = (-1, q.shape[1], -1, -1)
    out, lse = _flash(
        q, keys[:, None].expand(shape), values[:, None].expand(shape), 0.0, causal, attn_mask=None, scale=sm_scale
    )
    return out, lse


def merge(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges attention over two disjoint sets of keys.

    Args:
        first: output [..., D] and its log-sum-exp [...].
        second: the same over the other keys.

    Returns:
        Output and log-sum-exp over all keys.
    """
    lse = torch.logaddexp(first[1], second[1])
    share = (first[1] - lse).exp()[..., None]
    return first[0] * share + second[0] * (1 - share), lse


def extend(
    q: torch.Tensor,
    k_buffer: torch.Tensor,
    v_buffer: torch.Tensor,
    slots: torch.Tensor,
    prefix: int,
    sm_scale: float,
) -> torch.Tensor:
    """Attention of one request's new tokens.

    Args:
        q: [t, H*G, D], the new tokens' queries.
        k_buffer: [pool, H, D], the new tokens' keys included.
        v_buffer: [pool, H, D].
        slots: [prefix + t] the context's slots.
        prefix: tokens before the new ones.
        sm_scale: factor of the scores.

    Returns:
        [t, H*G, D] in the dtype of q. Computed in float32: on a CPU without bfloat16 arithmetic that costs the same.
    """
    tokens, heads = q.shape[0], k_buffer.shape[1]
    grouped = q.view(tokens, heads, -1, q.shape[-1]).permute(1, 2, 0, 3).float()
    keys = k_buffer.index_select(0, slots).transpose(0, 1).float()
    values = v_buffer.index_select(0, slots).transpose(0, 1).float()
    state = _attend(grouped, keys[:, prefix:], values[:, prefix:], sm_scale, causal=True)
    if prefix:
        state = merge(_attend(grouped, keys[:, :prefix], values[:, :prefix], sm_scale, causal=False), state)
    return state[0].permute(2, 0, 1, 3).reshape(q.shape).to(q.dtype)
