"""What the reader says after prompts of embeddings, many at once, with a KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.compressor.model import Compressor


class NoNumbers(ValueError):
    """The model's scores are no numbers."""


@dataclass(frozen=True, slots=True)
class Said:
    """A continuation.

    Attributes:
        tokens: with the one it ended by.
        ended: whether it came to an end before the limit.
    """

    tokens: tuple[int, ...]
    ended: bool


def stop_tokens(tokenizer: Any, size: int) -> torch.Tensor:
    """Which tokens end a saying: those with a full stop or a line end in them, and the end of a turn.

    Args:
        tokenizer: of transformers.
        size: of the model's vocabulary.

    Returns:
        bool [size].
    """
    texts = tokenizer.batch_decode([[token] for token in range(min(size, len(tokenizer)))])
    stops = [token for token, text in enumerate(texts) if "." in text or "\n" in text]
    stops += [token for token in tokenizer.all_special_ids if token < size]
    mask = torch.zeros(size, dtype=torch.bool)
    mask[stops] = True
    return mask


def say(
    compressor: Compressor,
    prompts: Sequence[torch.Tensor],
    *,
    limit: int,
    stops: torch.Tensor,
    draw: torch.Generator | None = None,
    rows: int = 256,
) -> list[Said]:
    """Continue prompts.

    Args:
        compressor: whose reader speaks.
        prompts: embeddings, [n, hidden] each, of one position or more.
        limit: the most tokens.
        stops: which tokens end a continuation, bool [vocabulary].
        draw: for sampling at temperature 1, on the compressor's device; None: greedy.
        rows: continued together.

    Raises:
        NoNumbers: the model's scores are not finite.
    """
    told: list[Said] = []
    device = compressor.device
    half = torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
    with torch.no_grad(), compressor.reading(), half:
        for first in range(0, len(prompts), rows):
            told += _some(compressor, prompts[first : first + rows], limit, stops.to(device), draw)
    return told


def _some(
    compressor: Compressor,
    prompts: Sequence[torch.Tensor],
    limit: int,
    stops: torch.Tensor,
    draw: torch.Generator | None,
) -> list[Said]:
    device, count = compressor.device, len(prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    # padding stands between prompt and continuation, masked: so every query has something to look at
    embedded = pad_sequence(list(prompts), batch_first=True)
    places = torch.arange(embedded.shape[1], device=device)
    mask = (places < lengths[:, None]).long()
    cache, backbone = DynamicCache(), compressor.backbone()
    hidden = backbone(
        inputs_embeds=embedded, attention_mask=mask, position_ids=places[None], past_key_values=cache, use_cache=True
    ).last_hidden_state[torch.arange(count, device=device), lengths - 1]
    done = torch.zeros(count, dtype=torch.bool, device=device)
    columns: list[torch.Tensor] = []
    for number in range(limit):
        scores = compressor.logits(hidden).float()
        if not bool(torch.isfinite(scores).all()):
            raise NoNumbers("the model's scores are not finite")
        tokens = (
            scores.argmax(-1) if draw is None else torch.multinomial(scores.softmax(-1), 1, generator=draw).squeeze(1)
        )
        columns.append(tokens)
        done |= stops[tokens]
        if number + 1 == limit or bool(done.all()):
            break
        mask = torch.cat((mask, mask.new_ones(count, 1)), 1)
        hidden = backbone(
            inputs_embeds=compressor.embed(tokens[:, None]), attention_mask=mask,
            position_ids=(lengths + number)[:, None], past_key_values=cache, use_cache=True,
        ).last_hidden_state[:, 0]  # fmt: skip
    ends = stops.tolist()
    return [_cut(row, ends) for row in torch.stack(columns, 1).tolist()]


def _cut(tokens: list[int], stops: list[bool]) -> Said:
    for number, token in enumerate(tokens):
        if stops[token]:
            return Said(tuple(tokens[: number + 1]), True)
    return Said(tuple(tokens), False)
