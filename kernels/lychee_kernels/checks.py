"""Checks of arguments that raise with the offending shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def check_shapes(tensors: dict[str, tuple[torch.Tensor, tuple[int | str, ...]]]) -> dict[str, int]:
    """Checks tensors against shapes with named sizes.

    Args:
        tensors: for each argument's name the tensor and its shape; a string names a size that is the same everywhere.

    Returns:
        The named sizes.

    Raises:
        ValueError: a rank or a size differs; the message names argument, expected and received shape.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, expected) in tensors.items():
        received = tuple(tensor.shape)
        agrees = len(received) == len(expected)
        if agrees:
            for want, got in zip(expected, received, strict=True):
                agrees &= sizes.setdefault(want, got) == got if isinstance(want, str) else want == got
        if not agrees:
            known = ", ".join(f"{key}={size}" for key, size in sizes.items())
            raise ValueError(f"{name} has shape {received}, expected {expected} with {known}")
    return sizes
