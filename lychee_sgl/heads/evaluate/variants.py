"""Decoding one prompt under many plans and budgets at once, each a row of one batch with roles of its own.

The prompt is prefilled once. At every step the rows' retrieval heads attend to everything and choose sets by their own
budgets, the rows' sparse heads read the sets of their own roots: the server's semantics (DESIGN.md 2), row by row.

Shape legend: as in `lychee_sgl.heads.rows`; writers are the roots of a layer, over all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lychee_kernels.select_tokens import select_mask
from lychee_sgl.heads.rows import hidden_states, masked_scores, rows_attached, weighted_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.heads.hybrid_hf import Prefix
    from lychee_sgl.heads.plan import HeadPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A plan under a budget.

    Attributes:
        name: the plan's name in the run.
        plan: roles and sources; None: every head dense.
        budget: tokens in a set; None with a dense row.
    """

    name: str
    plan: HeadPlan | None
    budget: int | None

    @property
    def key(self) -> str:
        """Its name in a run: `random@512`, or `dense`."""
        return self.name if self.budget is None else f"{self.name}@{self.budget}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a variant gave.

    Attributes:
        tokens: the answer, without the token that ended it.
        recall: attention mass that the sparse heads' sets held, mean over sparse heads and decode steps; None where
            no head is sparse or no step was decoded.
    """

    tokens: tuple[int, ...]
    recall: float | None


class VariantRows:
    """How every row's heads attend; a `RowAttention` for one prompt and one token a step."""

    def __init__(self, prefix: Prefix, variants: Sequence[Variant], *, longest: int) -> None:
        """Prepares the rows.

        Args:
            prefix: the prefilled prompt.
            variants: one a row.
            longest: most tokens that will be decoded.
        """
        self.prefix = prefix
        layers, heads, before, size = prefix.keys.shape
        device, rows = prefix.keys.device, len(variants)
        retrieval = torch.ones(rows, layers, heads, dtype=torch.bool)
        roots = torch.zeros(rows, layers, heads, dtype=torch.int64)
        writes = torch.zeros(rows, layers, heads, dtype=torch.bool)
        for row, variant in enumerate(variants):
            if variant.plan is None:
                continue
            for layer, head in variant.plan.sparse_heads():
                root = variant.plan.root(layer, head)
                retrieval[row, layer, head] = False
                roots[row, layer, head] = root[0] * heads + root[1]
                writes[row][root] = True
        self._retrieval, self._roots = retrieval.to(device), roots.to(device)
        self._writers = [writes[:, layer].nonzero().to(device).unbind(1) for layer in range(layers)]
        kept = [None if v.plan is None else v.plan.defaults for v in variants]
        self._budget, self._sinks, self._recent = (
            torch.tensor(values, device=device)
            for values in (
                [variant.budget or 1 for variant in variants],
                [0 if defaults is None else defaults.sinks for defaults in kept],
                [0 if defaults is None else defaults.recent for defaults in kept],
            )
        )
        self._most = max((variant.budget or 1 for variant in variants), default=1)
        self._row = torch.arange(rows, device=device)[:, None]
        self._sets = torch.zeros(rows, layers * heads, before + longest, dtype=torch.bool, device=device)
        room = (layers, rows, heads, longest, size)
        self._keys, self._values = prefix.keys.new_empty(room), prefix.keys.new_empty(room)
        self._decoded = [0] * layers
        self.recall = torch.zeros(rows, dtype=torch.float64, device=device)
        self.recall_count = torch.zeros(rows, dtype=torch.int64, device=device)
        self.counted = torch.ones(rows, dtype=torch.bool, device=device)
        """Rows whose recall is counted at this step: those that have not ended."""

    def correct(self, rows: list[int], start: int, end: int) -> None:
        """Gives rows the keys and values of row 0 for decoded tokens, in all layers.

        Where row 0 runs dense and has decoded the same tokens, this is what running them again densely gives
        (DESIGN.md 11.2), as long as what stands before them is dense already.

        Args:
            rows: which.
            start: the first token, counted from the first decoded one.
            end: behind the last.
        """
        for kept in (self._keys, self._values):
            kept[:, rows, :, start:end] = kept[:, :1, :, start:end]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `RowAttention`; m is 1."""
        at = self._decoded[layer]
        self._keys[layer, :, :, at : at + 1], self._values[layer, :, :, at : at + 1] = key, value
        self._decoded[layer] = at + 1
        keys, values = self._keys[layer, :, :, : at + 1], self._values[layer, :, :, : at + 1]
        scores, lengths = masked_scores(query, self.prefix.keys[layer], keys, scale)  # [B, H, G, 1, n]
        dense = scores.softmax(-1)
        heads, context = key.shape[1], scores.shape[-1]
        rows, writers = self._writers[layer]
        if rows.numel():
            self._sets[rows, layer * heads + writers, :context] = select_mask(
                dense[:, :, :, 0].mean(2)[rows, writers], lengths[-1:].expand(rows.numel()), self._budget[rows],
                sinks=self._sinks[rows], recent=self._recent[rows], most=self._most,
            )  # fmt: skip
        used = dense
        if layer > 0:
            retrieval = self._retrieval[:, layer]  # [B, H]
            chosen = self._sets[self._row, self._roots[:, layer], :context] | retrieval[..., None]
            used = scores.masked_fill(~chosen[:, :, None, None], float("-inf")).softmax(-1)
            held = (dense * chosen[:, :, None, None]).sum(-1).mean((2, 3)).double()
            sparse = ~retrieval & self.counted[:, None]
            self.recall += (held * sparse).sum(-1)
            self.recall_count += sparse.sum(-1)
        return weighted_values(used, self.prefix.values[layer], values)


def answer_all(
    model: Any, prefix: Prefix, variants: Sequence[Variant], *, stop: frozenset[int], longest: int, at_once: int = 128
) -> list[Reply]:
    """Greedy answers of all variants.

    Args:
        model: the model.
        prefix: the prefilled prompt.
        variants: what to decode it under.
        stop: tokens that end an answer.
        longest: most tokens of an answer.
        at_once: rows of a batch; more variants go in several.

    Returns:
        One reply a variant.
    """
    replies: list[Reply] = []
    for start in range(0, len(variants), at_once):
        replies += _answer(model, prefix, variants[start : start + at_once], stop, longest)
    return replies


def _answer(model: Any, prefix: Prefix, variants: Sequence[Variant], stop: frozenset[int], longest: int) -> list[Reply]:
    device = prefix.keys.device
    rows = VariantRows(prefix, variants, longest=longest)
    ends = torch.tensor(sorted(stop), device=device)
    token = prefix.logits.argmax().to(device).expand(len(variants))
    project = model.get_output_embeddings()
    answer: list[torch.Tensor] = []
    alive = ~torch.isin(token, ends)
    steps = alive.long()  # tokens of each answer
    with torch.no_grad(), rows_attached(model):
        while bool(alive.any()):
            answer.append(token)
            if len(answer) == longest:
                break
            rows.counted = alive
            hidden = hidden_states(model, rows, token[:, None], len(prefix) + len(answer) - 1)
            token = project(hidden[:, -1]).float().argmax(-1)
            alive = alive & ~torch.isin(token, ends)
            steps = steps + alive
    recall, count = rows.recall.tolist(), rows.recall_count.tolist()
    told = torch.stack(answer, dim=1).tolist() if answer else [[] for _ in variants]
    return [
        Reply(tokens=tuple(told[row][: int(steps[row])]), recall=recall[row] / count[row] if count[row] else None)
        for row in range(len(variants))
    ]
