"""Structured output on the CPU: xgrammar's own CPU functions where SGLang insists on a GPU's.

SGLang allocates its token masks in pinned memory and applies them with Triton; without a GPU the first request with a
grammar would end the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def allocate(vocab_size: int, batch_size: int) -> torch.Tensor:
    """Allocates masks that allow everything: int32 [batch_size, ceil(vocab_size / 32)], one bit a token."""
    from xgrammar import allocate_token_bitmask

    return allocate_token_bitmask(batch_size, vocab_size)


def apply(logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
    """Sets the logits [B, vocabulary] of tokens that a mask forbids to -inf, in place."""
    from xgrammar import apply_token_bitmask_inplace

    apply_token_bitmask_inplace(logits, vocab_mask)


def apply_method(_: Any, logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
    """Does the same as the method of a grammar object."""
    apply(logits, vocab_mask)
