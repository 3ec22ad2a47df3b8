"""Hybrid-head decoding of a Hugging Face model, by definition rather than for speed (DESIGN.md section 2).

This is what plans are measured with: one request, dense prefill, then decode steps in which every head plays its role.
Several known tokens can go through at once: token t attends to what stands before it and selects its own sets, so the
numbers are those of one decode step after another.

Shape legend: L layers, H KV heads, G query heads of a KV head, D head size, n context, m new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, DynamicCache

from lychee_kernels.layout import ratio_bounds
from lychee_kernels.select_tokens import select_mask

if TYPE_CHECKING:
    from lychee_sgl.heads.plan import HeadPlan

IMPLEMENTATION = "lychee_hybrid"

Observer = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called in every layer with (layer, probabilities [H, G, m, n], values [H, n, D], outputs [H, G, m, D])."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A densely prefilled prompt; many plans decode from the same one.

    Attributes:
        keys: [L, H, n, D], rotated as the model stores them.
        values: [L, H, n, D].
        logits: [V], the scores of the first output token.
    """

    keys: torch.Tensor
    values: torch.Tensor
    logits: torch.Tensor

    def __len__(self) -> int:
        return int(self.keys.shape[2])


@dataclass(slots=True, kw_only=True)
class Decoding:
    """One request's decode steps over a prefix.

    Attributes:
        prefix: the prefilled prompt.
        plan: roles and sources; None runs every head dense.
        budget: tokens in a set (mode `topk`), with the plan's own sinks and recent tokens.
        share: of the context that a set holds instead (mode `ratio`); None: `budget` counts.
        observer: sees every layer's probabilities and outputs.
        keys, values: what decoding has added, a list of [H, m, D] for every layer.
        recall: for each sparse head the attention mass that its set held, summed over the group's mean of every step.
        steps: decode steps so far.
    """

    prefix: Prefix
    plan: HeadPlan | None = None
    budget: int = 1024
    share: float | None = None
    observer: Observer | None = None
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    recall: dict[tuple[int, int], float] = field(default_factory=dict)
    steps: int = 0
    _sets: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    _roots: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        layers, heads, _, size = self.prefix.keys.shape
        empty = self.prefix.keys.new_empty(heads, 0, size)
        self.keys, self.values = [empty] * layers, [empty] * layers
        if self.plan is not None:
            self._roots = frozenset(self.plan.roots())

    def __len__(self) -> int:
        return len(self.prefix) + self.steps

    @property
    def mean_recall(self) -> float:
        """Mean over sparse heads and steps; 1 where no head is sparse."""
        if not self.recall:
            return 1.0
        return sum(self.recall.values()) / (len(self.recall) * self.steps)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """One layer of decode steps.

        Args:
            layer: which; layers come in rising order, layer 0 begins new sets.
            query: [H * G, m, D].
            key: [H, m, D], the new tokens' own.
            value: [H, m, D].
            scale: what dot products are multiplied by.

        Returns:
            [H * G, m, D].
        """
        self.keys[layer] = torch.cat((self.keys[layer], key), dim=1)
        self.values[layer] = torch.cat((self.values[layer], value), dim=1)
        heads, new, size = key.shape
        before = len(self.prefix)
        q = query.reshape(heads, -1, size)  # [H, G * m, D]
        parts = (self.prefix.keys[layer], self.keys[layer])
        scores = torch.cat([q @ part.transpose(1, 2) for part in parts], dim=-1).float() * scale
        context = scores.shape[-1]
        scores = scores.view(heads, -1, new, context)  # [H, G, m, n]
        lengths = torch.arange(context - new + 1, context + 1, device=query.device)
        future = torch.arange(context, device=query.device) >= lengths[:, None]  # [m, n]
        scores = scores.masked_fill(future, float("-inf"))
        dense = scores.softmax(-1)
        probabilities = dense
        if self.plan is not None:
            probabilities = self._sparse(layer, scores, dense, lengths)
        used = probabilities.to(value.dtype).reshape(heads, -1, context)
        output = used[..., :before] @ self.prefix.values[layer] + used[..., before:] @ self.values[layer]
        output = output.view(heads, -1, new, size)
        if self.observer is not None:
            values = torch.cat((self.prefix.values[layer], self.values[layer]), dim=1)
            self.observer(layer, dense, values, output)
        return output.reshape(-1, new, size)

    def _sparse(self, layer: int, scores: torch.Tensor, dense: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Sets of this layer's roots, and the probabilities with which its heads read: [H, G, m, n]."""
        assert self.plan is not None
        if layer == 0:
            self._sets.clear()  # sets live for one step
        rows: list[torch.Tensor] = []
        for head in range(scores.shape[0]):
            if not self.plan.is_retrieval(layer, head):
                chosen = self._sets[self.plan.root(layer, head)]
                held = (dense[head] * chosen).sum(-1).mean(0).sum()
                self.recall[layer, head] = self.recall.get((layer, head), 0.0) + float(held)
                rows.append(scores[head].masked_fill(~chosen, float("-inf")).softmax(-1))
                continue
            if (layer, head) in self._roots:
                kept = self.plan.defaults
                bound = self.budget if self.share is None else ratio_bounds(self.share, lengths)
                self._sets[layer, head] = select_mask(
                    dense[head].detach().mean(0), lengths, bound, sinks=kept.sinks, recent=kept.recent
                )
            rows.append(dense[head])
        return torch.stack(rows)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    hybrid: Decoding,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in a layer: query [1, H * G, m, D], key, value [1, H, m, D]; gives [1, m, H * G, D]."""
    output = hybrid.attend(int(module.layer_idx), query[0], key[0], value[0], scaling)
    return output.transpose(0, 1)[None], None


@contextmanager
def hybrid_attention(model: Any) -> Iterator[None]:
    """Let a model decode through `Decoding` while the block runs."""
    AttentionInterface.register(IMPLEMENTATION, _attention)
    before = model.config._attn_implementation
    model.config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        model.config._attn_implementation = before


def prefill(model: Any, tokens: Sequence[int], *, chunk: int = 8192) -> Prefix:
    """Run a prompt densely, with the model's own attention.

    Args:
        model: a causal language model of transformers.
        tokens: the prompt.
        chunk: tokens that go through at once.

    Raises:
        ValueError: the prompt is empty.
    """
    if not tokens:
        raise ValueError("tokens is empty; allowed: at least one token")
    cache = DynamicCache()
    logits = None
    with torch.no_grad():
        for start in range(0, len(tokens), chunk):
            part = torch.tensor([list(tokens[start : start + chunk])], device=model.device)
            logits = model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
    assert logits is not None
    return Prefix(
        keys=torch.cat([layer.keys for layer in cache.layers]),
        values=torch.cat([layer.values for layer in cache.layers]),
        logits=logits.float(),
    )


def step(model: Any, decoding: Decoding, tokens: Sequence[int]) -> torch.Tensor:
    """Decode steps for known tokens, all at once; the numbers are those of one after another.

    Args:
        model: the model, inside `hybrid_attention`.
        decoding: the request; it grows by these tokens.
        tokens: m tokens, each attending to all before it.

    Returns:
        float32 [m, V]: scores of the token after each.
    """
    start = len(decoding)
    decoding.steps += len(tokens)
    logits = model(
        input_ids=torch.tensor([list(tokens)], device=model.device),
        position_ids=torch.arange(start, start + len(tokens), device=model.device)[None],
        use_cache=False,
        hybrid=decoding,
    ).logits
    return logits[0].float()


def generate(model: Any, decoding: Decoding, *, stop: frozenset[int], max_tokens: int) -> list[int]:
    """Greedy answer, without the token that ended it.

    Args:
        model: the model, inside `hybrid_attention`.
        decoding: a request that has decoded nothing yet.
        stop: tokens that end an answer.
        max_tokens: longest answer.
    """
    answer: list[int] = []
    token = int(decoding.prefix.logits.argmax())
    with torch.no_grad():
        while token not in stop and len(answer) < max_tokens:
            answer.append(token)
            token = int(step(model, decoding, [token])[-1].argmax())
    return answer


def continues_as(model: Any, decoding: Decoding, answer: Sequence[int], ending: int | None) -> int:
    """How many of the known answer's tokens greedy decoding would give before it differs.

    All tokens go through at once, so this costs one pass: as long as no token differs, a decoder that picks for itself
    has seen the same tokens.

    Args:
        model: the model, inside `hybrid_attention`.
        decoding: a request that has decoded nothing yet.
        answer: the answer to compare with, at least one token.
        ending: the token that ended it, or None.

    Returns:
        Tokens in common, the ending counted.
    """
    with torch.no_grad():
        logits = torch.cat((decoding.prefix.logits[None], step(model, decoding, answer)))
    wanted = [*answer, *([] if ending is None else [ending])]
    picked = logits.argmax(-1).tolist()
    return next((i for i, token in enumerate(wanted) if picked[i] != token), len(wanted))
