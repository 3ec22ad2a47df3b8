"""Does error accumulate? Sparse rows beside a dense one that chooses the tokens (DESIGN.md 11.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from lychee_sgl.heads.evaluate.variants import Variant, VariantRows
from lychee_sgl.heads.hybrid_hf import prefill
from lychee_sgl.heads.rows import check_supported, hidden_states, rows_attached

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lychee_sgl.heads.evaluate.traces import Traces
    from lychee_sgl.heads.haystack import Haystack
    from lychee_sgl.heads.measure import LoadedModel

DENSE = Variant(name="dense", plan=None, budget=None)
MEASURES = ("divergence", "agreement", "recall")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A variant, and how often its cache is corrected.

    Attributes:
        variant: plan and budget.
        correction: decoded tokens between two corrections; 0 for none.
    """

    variant: Variant
    correction: int = 0

    @property
    def name(self) -> str:
        """The plan's name, the budget and the distance: `mine@256`, `mine@256+32`."""
        return self.variant.key + (f"+{self.correction}" if self.correction else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSettings:
    """Which traces are decoded.

    Attributes:
        prompts: how many traces.
        prompt_tokens: tokens of prose in front of each.
        tokens: tokens decoded.
        temperature: at which the dense model draws them; 0 takes the likeliest.
        seed: of prompts and draws.
        buckets: stretches of equal length into which positions are put together.
    """

    prompts: int = 4
    prompt_tokens: int = 512
    tokens: int = 1024
    temperature: float = 0.7
    seed: int = 0
    buckets: int = 16

    def __post_init__(self) -> None:
        whole = {"prompts": 2, "prompt_tokens": 1, "tokens": 2, "seed": 0, "buckets": 2}
        for name, low in whole.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: a whole number from {low}")
        if self.tokens < self.buckets:
            raise ValueError(f"buckets is {self.buckets}; allowed: up to the {self.tokens} tokens")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; allowed: 0 or more")


def trace(
    model: Any,
    prompt: Sequence[int],
    arms: Sequence[Arm],
    settings: DriftSettings,
    *,
    stop: frozenset[int],
    generator: torch.Generator,
    tell: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Decodes one trace.

    The dense row chooses every token, all rows are fed with it, and each row's distribution of the token after it is
    held against the dense row's. Tokens that would end the answer are never drawn.

    Args:
        model: the model.
        prompt: its prompt.
        arms: what stands beside the dense row.
        settings: how long, and how tokens are drawn.
        stop: tokens that end an answer.
        generator: on the CPU, for the draws.
        tell: told after each token how many there are.

    Returns:
        float64 [arms, tokens, 3] on the CPU: for each decode step the divergence KL(dense || arm) in nats, 1 where the
        likeliest token is the dense row's, and the recall (NaN for an arm without sparse heads).
    """
    prefix = prefill(model, prompt)
    device, steps = prefix.keys.device, settings.tokens
    rows = VariantRows(prefix, [DENSE, *(arm.variant for arm in arms)], longest=steps)
    ends = torch.tensor(sorted(stop), dtype=torch.int64, device=device)
    project = model.get_output_embeddings()
    found = torch.empty(len(arms), steps, len(MEASURES), dtype=torch.float64, device=device)
    token = _draw(prefix.logits, ends, settings.temperature, generator)
    with torch.no_grad(), rows_attached(model):
        for step in range(steps):
            for row, arm in enumerate(arms, start=1):
                if arm.correction and step and step % arm.correction == 0:
                    rows.correct([row], step - arm.correction, step)
            before, counted = rows.recall.clone(), rows.recall_count.clone()
            fed = token.to(device).expand(len(arms) + 1)[:, None]
            logits = project(hidden_states(model, rows, fed, len(prefix) + step)[:, -1]).float()
            told = logits.log_softmax(-1).double()
            found[:, step, 0] = (told[:1].exp() * (told[:1] - told[1:])).sum(-1)
            found[:, step, 1] = (logits[1:].argmax(-1) == logits[0].argmax()).double()
            found[:, step, 2] = ((rows.recall - before) / (rows.recall_count - counted))[1:]
            token = _draw(logits[0], ends, settings.temperature, generator)
            tell(step + 1)
    return found.cpu()


def _draw(logits: torch.Tensor, ends: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """A token out of scores [V], none of those that end an answer; int64 [1] on the CPU."""
    allowed = logits.float().index_fill(0, ends.to(logits.device), -math.inf).cpu()
    if temperature == 0:
        return allowed.argmax()[None]
    return torch.multinomial((allowed / temperature).softmax(-1), 1, generator=generator)


def prompts_of(loaded: LoadedModel, haystack: Haystack, settings: DriftSettings) -> list[list[int]]:
    """Prose from evenly distant places of the haystack.

    Raises:
        ValueError: the haystack is too short for a prompt.
    """
    blocks, found = haystack.paragraphs, []
    for number in range(settings.prompts):
        at = (number * len(blocks) // settings.prompts + settings.seed) % len(blocks)
        tokens: list[int] = []
        while len(tokens) < settings.prompt_tokens and at < len(blocks):
            tokens += loaded.answer(("\n\n" if tokens else "") + blocks[at])
            at += 1
        if len(tokens) < settings.prompt_tokens:
            raise ValueError(f"prompt_tokens is {settings.prompt_tokens}; allowed: what there is in {haystack.origin}")
        found.append(tokens[: settings.prompt_tokens])
    return found


def run_drift(
    loaded: LoadedModel,
    arms: Sequence[Arm],
    settings: DriftSettings,
    *,
    haystack: Haystack,
    kept: Traces | None = None,
    share: tuple[int, int] = (0, 1),
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any] | None:
    """Decodes all traces and puts positions together.

    Args:
        loaded: the model.
        arms: what stands beside the dense row, with different names.
        settings: which traces.
        haystack: text for the prompts.
        kept: where finished traces lie; those that are there are not decoded again.
        share: (i, n): decode the traces whose number leaves i when divided by n, as others decode the rest.
        tell: told how many tokens of this share are decoded, and of how many.

    Returns:
        None while others' traces are missing. Else JSON values: `arms`, for each its `points` (one a bucket, `from` and
        `to` in decoded tokens, each measure with its mean over positions and traces and the standard error over traces)
        and `grows`, the same for what the last quarter of the positions has more than the first.

    Raises:
        ValueError: the model is not supported, its window is too short, or two arms have one name.
    """
    check_supported(loaded.model)
    names = [arm.name for arm in arms]
    if len({*names}) != len(names) or not names:
        raise ValueError(f"arms are {', '.join(names) or 'none'}; allowed: one or more, with different names")
    window = int(loaded.model.config.max_position_embeddings)
    if settings.prompt_tokens + settings.tokens > window:
        asked = f"prompt_tokens {settings.prompt_tokens} and tokens {settings.tokens}"
        raise ValueError(f"{asked} are more than the model's window; allowed: {window} together")
    prompts = prompts_of(loaded, haystack, settings)
    found: dict[int, torch.Tensor] = {}
    mine = range(share[0], settings.prompts, share[1])
    for done, number in enumerate(mine):

        def decoded(tokens: int, past: int = done * settings.tokens) -> None:
            tell(past + tokens, len(mine) * settings.tokens)

        one = kept.get(number) if kept is not None else None
        if one is None:
            draws = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
            one = trace(loaded.model, prompts[number], arms, settings, stop=loaded.stop, generator=draws, tell=decoded)
            if kept is not None:
                kept.keep(number, one)
        decoded(settings.tokens)
        found[number] = one
    others = {number: kept.get(number) if kept is not None else None for number in range(settings.prompts)}
    whole = [one for number, other in others.items() if (one := found.get(number, other)) is not None]
    if len(whole) < settings.prompts:
        return None
    traces = torch.stack(whole)
    return {"arms": [_summary(arm, traces[:, i], settings) for i, arm in enumerate(arms)]}


def _summary(arm: Arm, traces: torch.Tensor, settings: DriftSettings) -> dict[str, Any]:
    """One arm's numbers out of [traces, tokens, 3]."""
    edges = [round(i * settings.tokens / settings.buckets) for i in range(settings.buckets + 1)]
    points = [{"from": low, "to": high, **_means(traces[:, low:high].mean(1))} for low, high in pairwise(edges)]
    quarter = max(1, settings.tokens // 4)
    grows = _means(traces[:, -quarter:].mean(1) - traces[:, :quarter].mean(1))
    return {
        "name": arm.name,
        "budget": arm.variant.budget,
        "correction": arm.correction,
        "all": _means(traces.mean(1)),
        "grows": grows,
        "points": points,
    }


def _means(values: torch.Tensor) -> dict[str, dict[str, float] | None]:
    """Means and standard errors over traces, values [traces, 3]; None where there is no number."""
    found: dict[str, dict[str, float] | None] = {}
    for column, name in enumerate(MEASURES):
        mean, error = float(values[:, column].mean()), float(values[:, column].std() / math.sqrt(len(values)))
        found[name] = None if math.isnan(mean) else {"mean": round(mean, 6), "error": round(error, 6)}
    return found
