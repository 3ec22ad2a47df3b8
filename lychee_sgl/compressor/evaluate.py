"""A compressor against an untrained one, against truncation, and between nothing and the whole text, on held-out text.

All arms give the reader the same frozen model, the same prompt and, but for `whole` and `nothing`, as many input
positions. *Reconstruction*: how many tokens of the window the reader finds most likely, each with all before it given,
and their loss. *Questions*: one fact of the window is asked for; the answer's beginning is given, and it is right when
every token of the number is the most likely one, which is when greedy decoding would say it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

import torch

from lychee_sgl.compressor.data import Samples
from lychee_sgl.compressor.facts import HELD_OUT
from lychee_sgl.compressor.reader import read
from lychee_sgl.heads.evaluate.scores import wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lychee_sgl.compressor.data import Sample
    from lychee_sgl.compressor.model import Compressor
    from lychee_sgl.compressor.settings import TrainSettings

ARMS: Final = ("trained", "untrained", "truncation")
"""What stands for a window at a ratio: blocks; means of embeddings, as before the first step; its first tokens."""
BOUNDS: Final = ("nothing", "whole")
"""What needs no ratio: no context, and all of it."""


@dataclass(frozen=True, slots=True)
class Score:
    """An arm at a ratio.

    Attributes:
        token_accuracy: share of the windows' tokens, with the half width of its 95% interval over windows.
        token_loss: nats a token.
        answers: share of questions, and its 95% interval (Wilson).
        answer_loss: nats a token of the number.
    """

    token_accuracy: tuple[float, float]
    token_loss: float
    answers: tuple[float, float, float]
    answer_loss: float


def held_out_samples(
    tokenizer: Any, text: Sequence[str], settings: TrainSettings, *, window: int, windows: int, questions: int
) -> tuple[list[Sample], list[Sample]]:
    """Windows to reconstruct and questions to answer, of text, wordings and names that no training saw.

    Raises:
        ValueError: a count is below 2, or there is too little text.
    """
    if windows < 2 or questions < 2:
        raise ValueError(f"windows is {windows}, questions {questions}; allowed: 2 or more")
    samples = Samples(tokenizer, text, window=window, settings=settings, facts=HELD_OUT)
    draw = Random(f"lychee-sgl compressor evaluation {settings.seed}")
    repeat = [samples.sample("reconstruct", draw) for _ in range(windows)]
    return repeat, [samples.sample("answer", draw) for _ in range(questions)]


def evaluate(
    compressor: Compressor,
    repeat: Sequence[Sample],
    answer: Sequence[Sample],
    *,
    batch: int = 16,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure all arms at all ratios.

    Args:
        compressor: trained.
        repeat: windows to reconstruct.
        answer: questions.
        batch: samples that are read together.
        tell: told each result as a line.

    Returns:
        `{"bounds": {name: score}, "ratios": {ratio: {arm: score}}}`, ready for JSON.
    """
    told: dict[str, Any] = {"bounds": {}, "ratios": {}}
    for name in BOUNDS:
        told["bounds"][name] = _score(compressor, repeat, answer, name, 1, batch, tell)
    for ratio in compressor.shape.ratios:
        told["ratios"][str(ratio)] = {
            arm: _score(compressor, repeat, answer, arm, ratio, batch, tell) for arm in ARMS
        }  # fmt: skip
    return told


def standing_for(compressor: Compressor, windows: torch.Tensor, arm: str, ratio: int) -> torch.Tensor:
    """What the reader gets in place of windows [B, n]: [B, m, hidden]."""
    count = windows.shape[1] // ratio
    match arm:
        case "trained":
            blocks: torch.Tensor = compressor(windows, ratio)
            return blocks
        case "untrained":
            return compressor.embed(windows).unflatten(1, (count, ratio)).mean(2)
        case "truncation" | "whole":
            return compressor.embed(windows[:, :count])
        case "nothing":
            return compressor.embed(windows[:, :0])
    raise ValueError(f"arm is {arm!r}; allowed: {', '.join((*ARMS, *BOUNDS))}")


def _score(
    compressor: Compressor,
    repeat: Sequence[Sample],
    answer: Sequence[Sample],
    arm: str,
    ratio: int,
    batch: int,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    right, loss = _read_all(compressor, repeat, arm, ratio, batch)
    shares = torch.stack([one.float().mean() for one in right])
    told, answer_loss = _read_all(compressor, answer, arm, ratio, batch)
    hits = sum(bool(one.all()) for one in told)
    low, high = wilson(hits, len(told))
    score = Score(
        (round(float(shares.mean()), 4), round(1.96 * float(shares.std()) / math.sqrt(len(shares)), 4)),
        round(float(torch.cat(loss).mean()), 4),
        (round(hits / len(told), 4), round(low, 4), round(high, 4)),
        round(float(torch.cat(answer_loss).mean()), 4),
    )
    where = "" if arm in BOUNDS else f" at ratio {ratio}"
    tell(f"{arm}{where}: {score.token_accuracy[0]:.1%} of tokens, {score.answers[0]:.1%} of answers")
    return {name: getattr(score, name) for name in Score.__slots__}


def _read_all(
    compressor: Compressor, samples: Sequence[Sample], arm: str, ratio: int, batch: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """For each sample which target tokens are right, and their losses."""
    device = compressor.device
    right: list[torch.Tensor] = []
    loss: list[torch.Tensor] = []
    for first in range(0, len(samples), batch):
        some = samples[first : first + batch]
        windows = torch.tensor([sample.window for sample in some], device=device)
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            found = read(compressor, some, list(standing_for(compressor, windows, arm, ratio)))
        for row in range(len(some)):
            right.append(found.right[found.row == row].cpu())
            loss.append(found.loss[found.row == row].cpu())
    return right, loss
