"""Choosing retrieval heads and sources together, as a covering problem.

Given `gain[a, b]`, how much of what head b needs the set of an earlier head a holds, and `gain[b, b]`, all that b
needs, the value of a choice R of retrieval heads is `f(R) = sum over b of max over a in R of gain[a, b]`: a
retrieval head serves itself in full, a sparse head takes the best source there is. f is a sum of maxima of numbers
that are not negative (facility location), so it never falls when R grows, and a head is worth less the more are
chosen (monotone and submodular). Greedy choice therefore adds at least 1 - 1/e = 63% of what the best choice of as
many heads adds to layer 0; finding the best choice itself is NP-hard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lychee_sgl.heads.plan import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """A choice of retrieval heads.

    Attributes:
        roles: one string a layer, as in a head plan.
        sources: for every sparse head the retrieval head that serves it best.
        order: retrieval heads beyond layer 0 in the order of their choice: a shorter plan is a prefix of it.
        covered: share of everything needed that is covered, in [0, 1]; 1 where nothing is needed.
    """

    roles: tuple[str, ...]
    sources: dict[Head, Head]
    order: tuple[Head, ...]
    covered: float


def greedy_cover(gain: torch.Tensor, *, layers: int, heads: int, retrieval: int, ranks: int = 1) -> Cover:
    """Choose retrieval heads one by one, each time the head that adds most; ties go to the lower layer and head.

    For several ranks (DESIGN.md 12) a choice is one head of every rank in the same layer, those that add most together;
    what does not divide by the ranks is chosen last, one head a rank. Sources stay on their rank.

    Args:
        gain: [N, N] with N = layers * heads, head (l, h) at l * heads + h. Entries [a, b] count where a's layer is
            before b's, and where a is b; all others are ignored.
        layers: layers of the model.
        heads: KV heads of a layer.
        retrieval: retrieval heads to choose, those of layer 0 included.
        ranks: on which the heads of a layer lie in equal shares, in their order; a divisor of `heads`.

    Raises:
        ValueError: the shape is wrong, an entry that counts is negative or not finite, or `retrieval` is out of range.
    """
    total = layers * heads
    if gain.shape != (total, total):
        raise ValueError(f"gain has shape {tuple(gain.shape)}, expected ({total}, {total})")
    if not heads <= retrieval <= total:
        raise ValueError(f"retrieval heads is {retrieval}; allowed: {heads} (layer 0 alone) to {total} (all heads)")
    if ranks < 1 or heads % ranks:
        raise ValueError(f"ranks is {ranks}; allowed: a divisor of the {heads} KV heads")
    layer_of = torch.arange(total) // heads
    rank_of = torch.arange(total) % heads // (heads // ranks)
    same_rank = rank_of[:, None] == rank_of[None, :]
    counts = (layer_of[:, None] < layer_of[None, :]) & same_rank | torch.eye(total, dtype=torch.bool)
    value = gain.double().masked_fill(~counts, 0.0)
    if not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
        raise ValueError("gain holds an entry that is negative or not finite")

    chosen = layer_of == 0
    best = value[chosen].amax(0)  # what the choice so far gives to each head
    order: list[Head] = []
    bundles, rest = divmod(retrieval - heads, ranks)
    for turn in range(bundles + rest):
        added = (value - best).clamp(min=0.0).sum(1).masked_fill(chosen, -torch.inf)
        if turn < bundles:
            # heads of different ranks serve different heads: what they add together is the sum
            most = added.view(layers, ranks, heads // ranks).max(-1)
            layer = int(most.values.sum(1).argmax())
            first = layer * heads + torch.arange(ranks) * (heads // ranks)
            picks = (first + most.indices[layer]).tolist()
        else:
            picks = [int(added.masked_fill(rank_of != turn - bundles, -torch.inf).argmax())]
        for pick in picks:
            chosen[pick] = True
            best = torch.maximum(best, value[pick])
            order.append(divmod(pick, heads))

    sources: dict[Head, Head] = {}
    for head in (~chosen).nonzero().flatten().tolist():
        usable = chosen & (layer_of < layer_of[head]) & same_rank[head]
        source = int(value[:, head].masked_fill(~usable, -1.0).argmax())
        sources[divmod(head, heads)] = divmod(source, heads)
    roles = tuple("".join("R" if flag else "S" for flag in row) for row in chosen.view(layers, heads).tolist())
    needed = float(value.diagonal().sum())
    return Cover(
        roles=roles, sources=sources, order=tuple(order), covered=float(best.sum()) / needed if needed else 1.0
    )
