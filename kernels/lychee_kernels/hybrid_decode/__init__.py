"""One layer of a decode step with mixed roles: dense for retrieval heads, the handed-down sets for sparse heads."""

from lychee_kernels.hybrid_decode.api import HybridDecode, hybrid_decode

__all__ = ["HybridDecode", "hybrid_decode"]
