"""Attention of many rows over one prefilled prompt, in the attention modules of a Hugging Face model.

A row is one continuation of the prompt: a plan to be tried, or a draw of gates. All rows share the prompt's KV and have
their own KV for what comes behind it. Scores and softmax are in float32 whatever the model's dtype.

Shape legend: B rows, L layers, H KV heads, G query heads of a KV head, D head size, p tokens of the prompt, m new
tokens of this pass, t tokens behind the prompt (m included), n = p + t.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import AttentionInterface

if TYPE_CHECKING:
    from collections.abc import Iterator

IMPLEMENTATION = "lychee_rows"

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose attention is one call of transformers' attention interface, with nothing of their own."""


class RowAttention(Protocol):
    """What decides how a layer attends."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """One layer: query [B, H * G, m, D], the new tokens' key and value [B, H, m, D]; gives [B, H * G, m, D]."""


def check_supported(model: Any) -> None:
    """Refuse a model whose attention is not plain and full.

    Raises:
        ValueError: another model type, or sliding windows.
    """
    config = model.config
    if config.model_type not in SUPPORTED:
        raise ValueError(f"model type is {config.model_type!r}; allowed: {', '.join(SUPPORTED)}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if kinds != {"full_attention"} or (config.model_type == "mistral" and window is not None):
        raise ValueError(f"the model has sliding windows ({window}); allowed: full attention in every layer")


@contextmanager
def rows_attached(model: Any) -> Iterator[None]:
    """Let a model attend through the `rows` it is called with, while the block runs; then as before."""
    check_supported(model)
    AttentionInterface.register(IMPLEMENTATION, _attention)
    before = model.config._attn_implementation
    model.config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    rows: RowAttention,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in a layer; it wants [B, m, H * G, D]."""
    return rows.attend(int(module.layer_idx), query, key, value, scaling).transpose(1, 2), None


def hidden_states(model: Any, rows: RowAttention, tokens: torch.Tensor, start: int) -> torch.Tensor:
    """Run tokens through the decoder, inside `rows_attached`.

    Args:
        model: the model.
        rows: how its layers attend.
        tokens: int64 [B, m], the next tokens of every row.
        start: position of the first.

    Returns:
        [B, m, hidden], normed as the output projection takes it.
    """
    steps = tokens.shape[1]
    positions = torch.arange(start, start + steps, device=tokens.device)[None].expand(tokens.shape[0], -1)
    output = model.get_decoder()(input_ids=tokens, position_ids=positions, use_cache=False, rows=rows)
    return output.last_hidden_state


def masked_scores(
    query: torch.Tensor, prefix_keys: torch.Tensor, keys: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of every row; their softmax is dense attention.

    Args:
        query: [B, H * G, m, D].
        prefix_keys: [H, p, D], the prompt's.
        keys: [B, H, t, D], of what comes behind it; the last m belong to the queries.
        scale: what dot products are multiplied by.

    Returns:
        Scores float32 [B, H, G, m, n], -inf on what a token cannot see yet, and the context's length for each of
        the m tokens, int64 [m].
    """
    batch, heads, behind, size = keys.shape
    steps, before = query.shape[2], prefix_keys.shape[1]
    q = query.reshape(batch, heads, -1, steps, size).float()
    shared = torch.einsum("bhgmd,hpd->bhgmp", q, prefix_keys.float())
    own = torch.einsum("bhgmd,bhtd->bhgmt", q, keys.float())
    scores = torch.cat((shared, own), dim=-1) * scale
    context = before + behind
    lengths = torch.arange(context - steps + 1, context + 1, device=keys.device)
    future = torch.arange(context, device=keys.device) >= lengths[:, None]
    return scores.masked_fill(future, float("-inf")), lengths


def weighted_values(used: torch.Tensor, prefix_values: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values under probabilities.

    Args:
        used: [B, H, G, m, n], which need not be dense attention.
        prefix_values: [H, p, D].
        values: [B, H, t, D].

    Returns:
        [B, H * G, m, D] in the dtype of the values.
    """
    used = used.to(values.dtype)
    before = prefix_values.shape[1]
    output = torch.einsum("bhgmp,hpd->bhgmd", used[..., :before], prefix_values)
    output = output + torch.einsum("bhgmt,bhtd->bhgmd", used[..., before:], values)
    return output.flatten(1, 2)
