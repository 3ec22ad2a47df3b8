"""The texts of the demo: always the same for the same model, and none that a head plan was calibrated on."""

from dataclasses import dataclass
from typing import Final

from lychee_sgl.heads.needles import NeedlePrompt, needle_prompts

PROBE_SEED: Final = 2025
TABLE_SEED: Final = 1
QUESTIONS_SEED: Final = 2
TABLE_TOKENS: Final = 7000
SHORTEST_TOKENS: Final = 2000
QUESTIONS: Final = 10
RESERVED_TOKENS: Final = 700  # of the window: template, question, answer, and that lengths are not exact
PROBE_TOKENS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long texts can be for a model.

    Attributes:
        chars_per_token: what this prose comes to in the model's vocabulary.
        longest: most tokens of a text.
    """

    chars_per_token: float
    longest: int


def probe() -> NeedlePrompt:
    """A short text of the same prose, to count its tokens."""
    return needle_prompts(1, tokens=(PROBE_TOKENS, PROBE_TOKENS), seed=PROBE_SEED, kind="evaluation")[0]


def lengths(*, probe_tokens: int, window: int) -> Lengths:
    """How long this model's texts can be.

    Args:
        probe_tokens: tokens of `probe().text` in the served model's vocabulary.
        window: the model's window, in tokens.

    Raises:
        ValueError: the window is too small for the shortest text.
    """
    longest = min(TABLE_TOKENS, window - RESERVED_TOKENS)
    if longest < SHORTEST_TOKENS:
        raise ValueError(f"the model's window is {window} tokens; the demo needs {SHORTEST_TOKENS + RESERVED_TOKENS}")
    return Lengths(chars_per_token=len(probe().text) / probe_tokens, longest=longest)


def table_question(found: Lengths) -> NeedlePrompt:
    """The longest text, with the fact in its middle."""
    return needle_prompts(
        1,
        tokens=(found.longest, found.longest),
        seed=TABLE_SEED,
        kind="evaluation",
        depths=(0.5, 0.5),
        chars_per_token=found.chars_per_token,
    )[0]


def ten_questions(found: Lengths) -> tuple[NeedlePrompt, ...]:
    """Ten texts from 2,000 tokens to the longest, with facts at depths from 0.1 to 0.85."""
    return needle_prompts(
        QUESTIONS,
        tokens=(SHORTEST_TOKENS, found.longest),
        seed=QUESTIONS_SEED,
        kind="evaluation",
        chars_per_token=found.chars_per_token,
    )
