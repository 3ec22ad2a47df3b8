"""One sample: what is asked, and how its reply is scored (DESIGN.md section 10)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What a task's generator makes.

    Attributes:
        prompt: one user message.
        prefix: words that the answer begins with, which the model continues; may be empty.
        answers: what is expected; what several mean is up to the metric.
        worked: the whole expected answer where it is long, so that its length can be counted; else empty.
        options: further parameters of the metric.
    """

    prompt: str
    prefix: str
    answers: tuple[str, ...]
    worked: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample of a task.

    Attributes:
        task: its name.
        length: tokens of prompt, prefix and longest answer together that it was made for; 0 where a file says.
        number: which of the task's samples of this length.
        prompt: one user message.
        prefix: words that the answer begins with.
        answers: what is expected.
        metric: of `lychee_sgl.eval.metrics`.
        max_tokens: longest answer.
        depth: where the needle stands, as a share of the text; None where there is no one place.
        options: further parameters of the metric.
    """

    task: str
    length: int
    number: int
    prompt: str
    prefix: str
    answers: tuple[str, ...]
    metric: str
    max_tokens: int
    depth: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in a run: `niah_single_1/4096/17`."""
        return f"{self.task}/{self.length}/{self.number}"

    @property
    def digest(self) -> str:
        """First 16 digits of the SHA-256 of prompt and prefix."""
        return sha256(f"{self.prompt}\0{self.prefix}".encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "answers": list(self.answers)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Sample:
        """Read what `as_dict` wrote."""
        return cls(**{**values, "answers": tuple(values["answers"])})
