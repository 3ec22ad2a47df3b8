"""From attention weights to the set of positions that a retrieval head hands down."""

from lychee_kernels.select_tokens.api import select_tokens
from lychee_kernels.select_tokens.batched import select_mask

__all__ = ["select_mask", "select_tokens"]
