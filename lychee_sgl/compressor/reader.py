"""What the reader makes of blocks: how likely it finds what it is to say, token by token.

Nothing here waits for the device: whole numbers go there in one copy, so a step is launched ahead of its computation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, kl_div

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.compressor.data import Sample
    from lychee_sgl.compressor.model import Compressor


@dataclass(frozen=True, slots=True)
class Reading:
    """All tokens that are to be said of some samples, one behind the other.

    Attributes:
        loss: negative log-likelihood of each, float32 [T].
        right: whether each was the most likely one, all before it given, bool [T].
        row: to which sample each belongs, int64 [T].
    """

    loss: torch.Tensor
    right: torch.Tensor
    row: torch.Tensor


def read(compressor: Compressor, samples: Sequence[Sample], blocks: Sequence[torch.Tensor]) -> Reading:
    """Let the reader say the targets.

    Args:
        compressor: whose frozen model reads.
        samples: what stands around the blocks, and the targets.
        blocks: for each sample what stands for its window, [m, hidden]; m may be 0.
    """
    laid = _laid_out(samples, blocks)
    scores = _scores(compressor, laid, blocks)
    row = [number for number, sample in enumerate(samples) for _ in sample.places]
    target, rows = on_device(scores.device, [one.target[place] for one in samples for place in one.places], row)
    return Reading(cross_entropy(scores, target, reduction="none"), scores.argmax(-1) == target, rows)


def divergence(compressor: Compressor, samples: Sequence[Sample], blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """How far the reader with its adapter is from the plain model, where it says the targets.

    Args:
        compressor: whose reader has an adapter.
        samples: as for `read`.
        blocks: as for `read`.

    Returns:
        For each token that is to be said the divergence KL(plain, reader) of what may stand there, nats, float32 [T].
    """
    laid = _laid_out(samples, blocks)
    with torch.no_grad():
        plain = _scores(compressor, laid, blocks, plain=True).log_softmax(-1)
    own = _scores(compressor, laid, blocks).log_softmax(-1)
    return kl_div(own, plain, log_target=True, reduction="none").sum(-1)


def task_means(values: torch.Tensor, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Mean of a value for each token that is to be said [T] over the tokens of each task that is there."""
    pieces: dict[str, list[torch.Tensor]] = {}
    for sample, piece in zip(samples, values.split([len(sample.places) for sample in samples]), strict=True):
        pieces.setdefault(sample.task, []).append(piece)
    return {task: torch.cat(some).mean() for task, some in pieces.items()}


def on_device(device: torch.device, *numbers: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Whole numbers on a device, in one copy that does not wait for what is being computed there."""
    flat = torch.tensor([number for some in numbers for number in some], dtype=torch.long)
    if device.type == "cuda":
        flat = flat.pin_memory()
    split: tuple[torch.Tensor, ...] = flat.to(device, non_blocking=True).split([len(some) for some in numbers])
    return split


@dataclass(frozen=True, slots=True)
class _Layout:
    """Rows of tokens and blocks, one behind the other.

    Attributes:
        rows: how many.
        tokens: of all rows, padded to one length; any where blocks stand.
        blocks: places of blocks, in order.
        asked: places whose next token is a target's.
    """

    rows: int
    tokens: list[int]
    blocks: list[int]
    asked: list[int]


def _laid_out(samples: Sequence[Sample], blocks: Sequence[torch.Tensor]) -> _Layout:
    around = [(sample.before, (*sample.after, *sample.target[:-1])) for sample in samples]
    longest = max(len(front) + len(block) + len(back) for (front, back), block in zip(around, blocks, strict=True))
    laid = _Layout(len(samples), [], [], [])
    for sample, (front, back), block in zip(samples, around, blocks, strict=True):
        first = len(laid.tokens) + len(front)
        behind = first + len(block)
        # padding stands on the right, where causal attention never looks from a token that counts
        padding = longest - len(front) - len(block) - len(back)
        laid.tokens.extend((*front, *[0] * len(block), *back, *[0] * padding))
        laid.blocks.extend(range(first, behind))
        start = behind + len(sample.after) - 1
        laid.asked.extend(start + place for place in sample.places)
    return laid


def _scores(
    compressor: Compressor, laid: _Layout, blocks: Sequence[torch.Tensor], *, plain: bool = False
) -> torch.Tensor:
    """Of every token of the vocabulary at the places that are asked for, float32 [T, vocabulary]."""
    tokens, places, asked = on_device(compressor.device, laid.tokens, laid.blocks, laid.asked)
    embedded = compressor.embed(tokens)
    embedded = embedded.index_copy(0, places, torch.cat(list(blocks)).to(embedded.dtype))
    hidden = compressor.read(embedded.unflatten(0, (laid.rows, -1)), plain=plain)
    return compressor.logits(hidden.flatten(0, 1).index_select(0, asked)).float()
