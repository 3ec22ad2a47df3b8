"""Matrix products of several tokens on CPUs that have no bfloat16 arithmetic.

There torch multiplies bfloat16 matrices at about a tenth of float32's speed (10 against 85 GFLOP/s on one Zen 3 core).
Widening the weights for each product pays from two tokens on; a single token (decode at batch 1) is bound by reading
the weights and stays as it is. Products are summed in float32 and rounded once, so results are no less exact.
"""

from __future__ import annotations

from typing import Any

import torch

LEAST_TOKENS = 2


def has_bfloat16_arithmetic() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX-512 BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def apply(original: Any, method: Any, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    """Stands around `UnquantizedLinearMethod.apply`.

    Args:
        original: SGLang's method.
        method: the instance it is called on.
        layer: holds `weight` [out, in].
        x: [..., in].
        bias: [out] or None.

    Returns:
        [..., out] in the dtype of x.
    """
    weight = layer.weight
    narrow = x.dtype == weight.dtype == torch.bfloat16
    if not narrow or x.numel() // x.shape[-1] < LEAST_TOKENS:
        return original(method, layer, x, bias)
    wide_bias = None if bias is None else bias.float()
    return torch.nn.functional.linear(x.float(), weight.float(), wide_bias).to(x.dtype)
