"""`select_tokens`: signature, validation and dispatch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lychee_kernels.checks import check_shapes

if TYPE_CHECKING:
    import torch

    from lychee_kernels.layout import DecodeRows


def select_tokens(
    weights: torch.Tensor,
    seq_lens: torch.Tensor,
    rows: DecodeRows,
    *,
    impl: Literal["reference", "triton"] = "reference",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Selects, for every row, the positions that a retrieval head hands down (DESIGN.md 2.1).

    Args:
        weights: [B, n_max] float; the group's mean attention probability of every position. What lies at or behind a
            row's length is not read.
        seq_lens: [B] integer, tokens in each context, the current one included; at least 1.
        rows: budgets and modes; a dense row gets an empty set.
        impl: which implementation.

    Returns:
        positions int32 [B, C], rising and padded with -1, C the size of the largest set, and counts int32 [B].

    Raises:
        ValueError: shapes disagree, a length is below 1 or above n_max, or `impl` is unknown.
    """
    sizes = check_shapes(
        {
            "weights": (weights, ("B", "n_max")),
            "seq_lens": (seq_lens, ("B",)),
            "rows.mode": (rows.mode, ("B",)),
        }
    )
    if sizes["B"] and not (int(seq_lens.min()) >= 1 and int(seq_lens.max()) <= sizes["n_max"]):
        raise ValueError(f"seq_lens {seq_lens.tolist()} must lie between 1 and n_max={sizes['n_max']}")
    match impl:
        case "reference":
            from lychee_kernels.select_tokens import reference

            return reference.select_tokens(weights, seq_lens, rows)
        case "triton":
            from lychee_kernels.select_tokens import triton

            return triton.select_tokens(weights, seq_lens, rows)
        case _:
            raise ValueError(f"impl is {impl!r}, allowed: 'reference', 'triton'")
