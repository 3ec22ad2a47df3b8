"""What the frozen reader makes of blocks: how likely it finds what it is to say, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.compressor.data import Sample
    from lychee_sgl.compressor.model import Compressor


@dataclass(frozen=True, slots=True)
class Reading:
    """All target tokens of some samples, one behind the other.

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
    rows, starts = [], []
    for sample, block in zip(samples, blocks, strict=True):
        device = block.device
        before, behind = (
            compressor.embed(torch.tensor(ids, dtype=torch.long, device=device))
            for ids in (sample.before, (*sample.after, *sample.target[:-1]))
        )
        rows.append(torch.cat((before, block.to(before.dtype), behind)))
        starts.append(len(sample.before) + block.shape[0] + len(sample.after) - 1)
    # padding stands on the right, where causal attention never looks from a token that counts
    hidden = compressor.read(pad_sequence(rows, batch_first=True))
    lengths = [len(sample.target) for sample in samples]
    row = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(lengths)).to(hidden.device)
    place = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]).to(hidden.device)
    target = torch.tensor([token for sample in samples for token in sample.target], device=hidden.device)
    scores = compressor.logits(hidden[row, place]).float()
    return Reading(cross_entropy(scores, target, reduction="none"), scores.argmax(-1) == target, row)


def task_losses(reading: Reading, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Mean loss over the tokens of each task that is there."""
    tasks = [sample.task for sample in samples]
    losses = {}
    for task in dict.fromkeys(tasks):
        here = torch.tensor([one == task for one in tasks], device=reading.row.device)[reading.row]
        losses[task] = reading.loss[here].mean()
    return losses
