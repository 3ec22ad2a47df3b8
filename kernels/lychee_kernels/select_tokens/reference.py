"""The definition of selection (DESIGN.md 2.1): one row at a time, torch only, any float dtype."""

from __future__ import annotations

import torch

from lychee_kernels.layout import DecodeRows, Mode, kept_window, set_bound


def select_row(weights: torch.Tensor, mode: Mode, budget: int, value: float, sinks: int, recent: int) -> torch.Tensor:
    """Selects one row's set.

    Args:
        weights: [n] pooled attention weights over the whole context.
        mode: how the set is bounded.
        budget: tokens; 0 for no bound (not with `topk`).
        value: the fraction of the modes that need one.
        sinks: first positions kept.
        recent: last positions kept.

    Returns:
        Rising positions, int64.
    """
    length = weights.shape[0]
    bound = set_bound(mode, budget, value, length)
    if bound >= length and mode in (Mode.TOPK, Mode.RATIO):
        return torch.arange(length, device=weights.device)
    if bound < length:
        sinks, recent = kept_window(bound, sinks, recent)

    position = torch.arange(length, device=weights.device)
    kept = (position < sinks) | (position >= length - max(recent, 1))
    # stable: equal weights stay in the order of their positions; NaN sorts behind every number
    order = torch.argsort(-weights, stable=True)
    others = order[~kept[order]]
    room = max(bound - int(kept.sum()), 0)

    if mode == Mode.THRESHOLD:
        others = others[weights[others] > value]
    elif mode == Mode.TOP_P:
        mass = weights.double().nan_to_num(0.0)
        reached = mass[kept].sum() + mass[others].cumsum(0)
        missing = int((reached < value).sum()) + 1 if mass[kept].sum() < value else 0
        others = others[:missing]
    chosen = kept.clone()
    chosen[others[:room]] = True
    return chosen.nonzero().squeeze(1)


def select_tokens(weights: torch.Tensor, seq_lens: torch.Tensor, rows: DecodeRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Selects the set of every row; see `lychee_kernels.select_tokens` for shapes."""
    sets = [
        weights.new_empty(0, dtype=torch.int64)
        if bool(rows.dense[b])
        else select_row(
            weights[b, : int(seq_lens[b])],
            Mode(int(rows.mode[b])),
            int(rows.budget[b]),
            float(rows.value[b]),
            int(rows.sinks[b]),
            int(rows.recent[b]),
        )
        for b in range(len(rows))
    ]
    counts = torch.tensor([len(s) for s in sets], dtype=torch.int32, device=weights.device)
    positions = weights.new_full((len(sets), int(counts.max()) if sets else 0), -1, dtype=torch.int32)
    for b, chosen in enumerate(sets):
        positions[b, : len(chosen)] = chosen.to(torch.int32)
    return positions, counts
