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
    rank: int = 32

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
        batch: samples a step, a third of them for each task.
        rate: AdamW's learning rate; warm-up, then constant, then falling to 0.
        warmup: share of the steps that it rises.
        decay: share of the steps, the last ones, that it falls.
        clip: the longest gradient.
        target: tokens of a continuation.
        facts: the most facts in a text that is asked about.
        windows: the most windows of such a text: one, or twice as many, and so on.
        keep: weight of the divergence of a reader with an adapter from the plain model, on whole text.
        seed: of everything that is drawn.
    """

    steps: int = 3000
    batch: int = 30
    rate: float = 1e-3
    warmup: float = 0.03
    decay: float = 0.3
    clip: float = 1.0
    target: int = 128
    facts: int = 6
    windows: int = 4
    keep: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "target", "facts", "windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.batch % len(TASKS):
            raise ValueError(
                f"batch is {self.batch}; allowed: a multiple of {len(TASKS)}, as many windows for each task"
            )
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: a number above 0")
        if not 0 <= self.keep < math.inf:
            raise ValueError(f"keep is {self.keep}; allowed: a number from 0 on")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceSettings:
    """How compressor and reader are trained on the outcome.

    Attributes:
        steps: of which each plays `tasks` times `group` trajectories.
        tasks: documents with a question, a step.
        group: trajectories of a task.
        passes: updates over a step's trajectories.
        ratios: of which a step draws one.
        windows: of a document.
        others: facts of a document that nobody asks about.
        two_hop: share of the tasks whose answer takes two facts.
        limit: the most tokens that are said in a conversation.
        loop: read window by window with notes; else all blocks at once.
        gated: lower rewards count behind the gates; else all do.
        gate: what the outcome has to reach for lower rewards to count.
        evidence: weight of that reward; the outcome's is 1.
        form: weight of the reward `format`: to come to an end, and soon.
        clip: how far the likelihood ratio counts from 1.
        kl: weight of the divergence from the start.
        norm: the longest gradient.
        rate: AdamW's learning rate, after a warm-up.
        warmup: steps that it rises.
        reader_rank: of the reader's adapter; 0: none, the compressor learns alone.
        seed: of everything that is drawn.
    """

    steps: int = 300
    tasks: int = 16
    group: int = 8
    passes: int = 2
    ratios: tuple[int, ...] = (4,)
    windows: int = 4
    others: int = 3
    two_hop: float = 0.5
    limit: int = 16
    loop: bool = False
    gated: bool = True
    gate: float = 1.0
    evidence: float = 0.2
    form: float = 0.05
    clip: float = 0.2
    kl: float = 0.0
    norm: float = 1.0
    rate: float = 3e-4
    warmup: int = 10
    reader_rank: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (
            ("steps", 1), ("tasks", 1), ("group", 2), ("passes", 1), ("windows", 1), ("others", 1), ("limit", 1),
            ("warmup", 0), ("reader_rank", 0),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {low} or more")
        for name in ("clip", "norm", "rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: a number above 0")
        for name in ("kl", "evidence", "form"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: a number from 0 on")
        if not 0 <= self.two_hop <= 1 or not 0 < self.gate <= 1:
            raise ValueError(f"two_hop is {self.two_hop}, gate {self.gate}; allowed: shares, the gate's above 0")
        if not self.ratios:
            raise ValueError("ratios is (); allowed: one or more of the compressor's")

    def factor(self, step: int) -> float:
        """Of the learning rate in a step, from 0."""
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0

    def as_dict(self) -> dict[str, Any]:
        """For records and identities."""
        return asdict(self)
