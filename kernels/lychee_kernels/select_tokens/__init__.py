"""From attention weights to the set of positions that a retrieval head hands down."""

from lychee_kernels.select_tokens.api import select_tokens

__all__ = ["select_tokens"]
