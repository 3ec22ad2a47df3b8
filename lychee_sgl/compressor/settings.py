"""What a compressor is and how it is trained. Standard library only."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

TASKS: Final = ("reconstruct", "continue", "answer")
"""What a compressor is trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressorShape:
    """What makes one compressor another than another.

    Attributes:
        hidden: size of the model's embeddings.
        vocabulary: entries of the model's vocabulary.
        layers: of the model.
        ratios: raw tokens a memory token stands for; one of these, rising.
        window: raw tokens that are compressed together; a longer text is cut into windows.
        rank: of the LoRA adapter.
    """

    hidden: int
    vocabulary: int
    layers: int
    ratios: tuple[int, ...] = (2, 4, 8, 16)
    window: int = 512
    rank: int = 64

    def __post_init__(self) -> None:
        for name in ("hidden", "vocabulary", "layers", "window", "rank"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: a whole number from 1 on")
        ratios = self.ratios
        if not ratios or list(ratios) != sorted({*ratios}) or ratios[0] < 2:
            raise ValueError(f"ratios is {ratios}; allowed: rising whole numbers from 2 on")
        if any(self.window % ratio for ratio in ratios):
            raise ValueError(f"window is {self.window}; allowed: a multiple of each of {ratios}")

    def check_ratio(self, ratio: int) -> int:
        """The ratio's place in `ratios`.

        Raises:
            ValueError: it is none of them.
        """
        if ratio not in self.ratios:
            raise ValueError(f"ratio is {ratio}; allowed: {', '.join(map(str, self.ratios))}")
        return self.ratios.index(ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How it is trained.

    Attributes:
        steps: of the optimiser.
        batch: windows a step, a third of them for each task.
        rate: AdamW's learning rate; warm-up, then constant, then falling to 0.
        warmup: share of the steps that it rises.
        decay: share of the steps, the last ones, that it falls.
        clip: the longest gradient.
        target: tokens of a continuation.
        facts: the most facts in a window that is asked about.
        seed: of everything that is drawn.
    """

    steps: int = 3000
    batch: int = 30
    rate: float = 1e-3
    warmup: float = 0.03
    decay: float = 0.3
    clip: float = 1.0
    target: int = 128
    facts: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "target", "facts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.batch % len(TASKS):
            raise ValueError(
                f"batch is {self.batch}; allowed: a multiple of {len(TASKS)}, as many windows for each task"
            )
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: a number above 0")
        if not 0 <= self.warmup < 1 or not 0 <= self.decay < 1 or self.warmup + self.decay > 1:
            raise ValueError(f"warmup is {self.warmup}, decay {self.decay}; allowed: shares of the steps, 1 together")

    def factor(self, step: int) -> float:
        """Of the learning rate in a step, from 0."""
        rising = (step + 1) / (self.warmup * self.steps) if self.warmup else 1.0
        falling = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return min(1.0, rising, falling)

    def as_dict(self) -> dict[str, Any]:
        """For records and identities."""
        return asdict(self)
