"""What every head's set would be worth to every later head, measured on one prompt with a known answer.

Shape legend: N heads of the model (layer * H + head), H of a layer, G query heads of a KV head, D head size, n context,
m decoded tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from lychee_kernels.layout import kept_window
from lychee_kernels.select_tokens import select_mask
from lychee_sgl.heads.hybrid_hf import Decoding, Prefix, hybrid_attention, step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.heads.measure import LoadedModel

Weighting = Literal["mass", "output", "effect"]
WEIGHTINGS: tuple[Weighting, ...] = ("mass", "output", "effect")


@dataclass(slots=True)
class _Trace:
    """What a pass showed, layer by layer: probabilities [H, G, m, n], values [H, n, D] and outputs [H, G, m, D]."""

    probabilities: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)

    def observe(self, _layer: int, probabilities: torch.Tensor, values: torch.Tensor, outputs: torch.Tensor) -> None:
        """Keep one layer; its output's gradient too, if there will be one."""
        if torch.is_grad_enabled():
            if outputs.requires_grad:
                outputs.retain_grad()
            else:
                outputs.requires_grad_(True)  # the first layer: nothing before it carries a gradient
        self.probabilities.append(probabilities.detach())
        self.values.append(values.detach())
        self.outputs.append(outputs)


def measure_gains(
    loaded: LoadedModel,
    prefix: Prefix,
    reply: Sequence[int],
    *,
    budget: int,
    sinks: int,
    recent: int,
    weightings: Sequence[Weighting] = WEIGHTINGS,
) -> dict[Weighting, torch.Tensor]:
    """Decode a known answer densely and measure `gain[a, b]`: what head a's set would be worth to a later head b.

    The set of a is what a would select as a retrieval head. Worth is counted above what b has in any case, the sinks
    and recent tokens, and summed over the decoded tokens:

    * `mass`: attention probability of b (mean over its group) on the tokens of the set.
    * `output`: how much closer the set brings b's contribution to the residual stream to the dense one, as the
      Euclidean norm of the difference after the output projection.
    * `effect`: how much closer it brings the answer: the difference in b's output times the gradient of the log-odds
      of the answer's tokens. A head that looks at much and changes nothing counts for nothing.

    `gain[b, b]` is what dense attention is worth to b, so no set is worth more.

    Args:
        loaded: the model.
        prefix: the prefilled prompt.
        reply: the right answer's tokens, at least two.
        budget: tokens in a set, sinks and recent tokens included.
        sinks: first tokens always kept.
        recent: last tokens always kept.
        weightings: which worths to measure.

    Returns:
        For each weighting float64 [N, N]; entries with a in b's layer or behind it, other than b itself, are 0.
    """
    trace = _trace(loaded, prefix, reply)
    heads, _, steps, context = trace.probabilities[0].shape
    device = trace.probabilities[0].device
    lengths = torch.arange(context - steps + 1, context + 1, device=device)
    with torch.no_grad():
        means = torch.cat([layer.mean(1) for layer in trace.probabilities])  # [N, m, n]
        sets = select_mask(means, lengths, budget, sinks=sinks, recent=recent)  # [N, m, n]
        kept = _kept(lengths, context, budget, sinks, recent)
        total = len(means)
        gains = {kind: torch.zeros(total, total, dtype=torch.float64, device=device) for kind in weightings}
        for head in range(total):
            layer, index = divmod(head, heads)
            before = torch.cat((kept[None], sets[: layer * heads]))  # [1 + earlier heads, m, n]
            if "mass" in gains:
                held = (before * means[head]).sum((1, 2)).double()
                gains["mass"][: layer * heads, head] = held[1:] - held[0]
                gains["mass"][head, head] = means[head].sum().double() - held[0]
            if "output" in gains or "effect" in gains:
                lost = _difference(trace, layer, index, before)  # [1 + earlier heads, G, m, D]
                for kind, damage in _damages(loaded, trace, layer, index, lost, weightings).items():
                    gains[kind][: layer * heads, head] = damage[0] - damage[1:]
                    gains[kind][head, head] = damage[0]
    return {kind: gain.clamp(min=0.0).cpu() for kind, gain in gains.items()}


def _trace(loaded: LoadedModel, prefix: Prefix, reply: Sequence[int]) -> _Trace:
    """One dense pass over the answer, and the gradient of its log-odds with respect to every head's output."""
    trace = _Trace()
    with hybrid_attention(loaded.model), torch.enable_grad():
        logits = step(loaded.model, Decoding(prefix=prefix, observer=trace.observe), reply)
        right = torch.tensor(reply[1:], device=logits.device)[:, None]
        wrong = logits[:-1].scatter(1, right, float("-inf")).logsumexp(-1)
        # the log-odds log(p / (1 - p)): unlike log p they still have a gradient where the model is sure of itself
        (logits[:-1].gather(1, right).squeeze(1) - wrong).sum().backward()
    return trace


def _kept(lengths: torch.Tensor, context: int, budget: int, sinks: int, recent: int) -> torch.Tensor:
    """What every set holds in any case: bool [m, n]."""
    sinks, recent = kept_window(budget, sinks, recent)
    position = torch.arange(context, device=lengths.device)
    from_end = lengths[:, None] - position
    return ((position < sinks) | (from_end <= max(recent, 1))) & (from_end > 0)


def _difference(trace: _Trace, layer: int, index: int, sets: torch.Tensor) -> torch.Tensor:
    """Output of a head that reads each of the sets [A, m, n], less its dense output: [A, G, m, D]."""
    probabilities = trace.probabilities[layer][index]  # [G, m, n]
    values = trace.values[layer][index]
    result = []
    for chosen in sets:  # one at a time: all at once would be the largest tensor of the whole calibration
        masked = probabilities * chosen
        result.append(masked @ values / masked.sum(-1, keepdim=True).clamp(min=1e-30))
    return torch.stack(result) - trace.outputs[layer][index].detach()


def _damages(
    loaded: LoadedModel, trace: _Trace, layer: int, index: int, lost: torch.Tensor, weightings: Sequence[Weighting]
) -> dict[Weighting, torch.Tensor]:
    """How bad each difference [A, G, m, D] is: float64 [A] for `output` and `effect`, as far as asked for."""
    result: dict[Weighting, torch.Tensor] = {}
    group, size = lost.shape[1], lost.shape[3]
    if "output" in weightings:
        projection = loaded.model.get_decoder().layers[layer].self_attn.o_proj.weight  # [hidden, H * G * D]
        mine = projection[:, index * group * size : (index + 1) * group * size]
        flat = lost.transpose(1, 2).flatten(2)  # [A, m, G * D]
        result["output"] = (flat @ mine.T).norm(dim=-1).sum(-1).double()
    if "effect" in weightings:
        gradient = trace.outputs[layer].grad
        assert gradient is not None
        result["effect"] = (lost * gradient[index]).sum((1, 3)).abs().sum(-1).double()
    return result
