"""GRPO of compressor and reader together: from sampled trajectories to a gradient that goes through the blocks.

A step plays each of its tasks `group` times, without gradient. What was said is then scored once more with gradient:
the windows are compressed anew, the reader reads over them, and so the objective reaches the compressor. Tasks and
sampling follow from seed and step; a state between two steps is weights, moments and the step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import torch

from lychee_sgl.compressor.course import Course, TrainingError
from lychee_sgl.compressor.parts import Parts
from lychee_sgl.compressor.play import LEVELS, Player, chain_of, compressed
from lychee_sgl.compressor.reader import read
from lychee_sgl.compressor.sampler import NoNumbers
from lychee_sgl.compressor.settings import ReinforceSettings
from lychee_sgl.rewards.gated import group_advantages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_sgl.compressor.documents import Documents, Task
    from lychee_sgl.compressor.model import Compressor
    from lychee_sgl.compressor.play import Conversation, Trajectory

COLUMNS: Final = (
    "ratio", "seconds", "total", *LEVELS, "groups_that_differ", "tokens_said", "clipped", "divergence"
)  # fmt: skip
"""A row of the history. Rewards are means over trajectories, before weights; `total` is what the levels came to."""

_AT_ONCE: Final = 4  # tasks in a pass with gradient, at first: a bound for devices that several trainings share


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayReport:
    """What a step showed.

    Attributes:
        step: from 0.
        ratio: its ratio.
        rewards: mean of each level over the step's trajectories, and their `total`.
        differ: share of the groups with more than one total: only they teach anything.
        seconds: it took.
    """

    step: int
    ratio: int
    rewards: dict[str, float]
    differ: float
    seconds: float


@dataclass(slots=True)
class Line:
    """A conversation in the objective.

    Attributes:
        conversation: what was said after what.
        advantage: of its trajectory.
        old: log-likelihood of its tokens before the step's first update, [T].
        start: the same under the policy that the training began with.
    """

    conversation: Conversation
    advantage: float
    old: torch.Tensor | None = None
    start: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Lesson:
    """A task and its lines."""

    task: Task
    lines: tuple[Line, ...]


class Reinforcer(Course[ReinforceSettings, PlayReport]):
    """One reinforcement of a compressor and its reader. `COLUMNS` names a row of its history."""

    def __init__(
        self, compressor: Compressor, documents: Documents, settings: ReinforceSettings, identity: dict[str, Any]
    ) -> None:
        """Prepares step 0.

        Args:
            compressor: is trained in place, with its reader.
            documents: where tasks come from.
            settings: how.
            identity: what else has to agree for a state to go on: the start and the text.

        Raises:
            ValueError: a ratio is none of the compressor's.
        """
        super().__init__(compressor, settings, identity)
        for ratio in settings.ratios:
            compressor.shape.check_ratio(ratio)
        self.documents, self.chain = documents, chain_of(settings)
        self.player = Player(compressor, documents.samples, settings)
        self._start = self.weights() if settings.kl else {}
        self._parts: Parts[Lesson, tuple[float, float]] = Parts(_AT_ONCE)

    def _advance(self) -> tuple[PlayReport, list[float]]:
        started = time.perf_counter()
        ratio, tasks, played = self._played(self.step)
        totals = [[self.chain.total(one.rewards) for one in group] for group in played]
        lessons = [
            _lesson(task, group, group_advantages(total))
            for task, group, total in zip(tasks, played, totals, strict=True)
        ]
        clipped, divergence = self._learn(lessons, ratio)
        every = [one for group in played for one in group]
        rewards = {"total": fmean(total for group in totals for total in group)}
        rewards |= {
            level: fmean(sum(step.get(level, 0.0) for step in one.rewards) for one in every) for level in LEVELS
        }
        said = fmean(len(one.said) for trajectory in every for one in trajectory.conversations)
        differ = fmean(len({*total}) > 1 for total in totals)
        seconds = time.perf_counter() - started
        report = PlayReport(step=self.step, ratio=ratio, rewards=rewards, differ=differ, seconds=seconds)
        return report, [ratio, seconds, *rewards.values(), differ, said, clipped, divergence]

    def _played(self, step: int) -> tuple[int, list[Task], list[list[Trajectory]]]:
        settings = self.settings
        name = Random(f"lychee-sgl reinforce sampling {settings.seed} {step}")
        ratio = name.choice(settings.ratios)
        draw = torch.Generator(self.compressor.device).manual_seed(name.getrandbits(63))
        tasks = self.documents.batch(step)
        try:
            return ratio, tasks, self.player.play(tasks, ratio, group=settings.group, draw=draw)
        except NoNumbers as error:
            raise TrainingError(f"step {step}: {error}; allowed: finite ones") from error

    def _learn(self, lessons: Sequence[Lesson], ratio: int) -> tuple[float, float]:
        """Some updates; the share of tokens whose ratio was clipped in the last one, and their mean divergence."""
        tokens = sum(len(line.conversation.said) for lesson in lessons for line in lesson.lines)
        if not self.settings.kl:  # without a difference there is nothing to learn
            lessons = [lesson for lesson in lessons if any(line.advantage for line in lesson.lines)]
        if not lessons:
            return 0.0, 0.0
        if self._start:
            self._remember(lessons, ratio)
        clipped = divergence = 0.0
        for _ in range(self.settings.passes):
            self._forget()
            seen = self._parts.run(lessons, lambda some: self._gradient(some, ratio, tokens), self._forget)
            clipped, divergence = (sum(column) for column in zip(*seen, strict=True))
            self._descend(self.settings.norm, f"divergence is {divergence}", [clipped, divergence])
        return clipped, divergence

    def _gradient(self, lessons: Sequence[Lesson], ratio: int, tokens: int) -> tuple[float, float]:
        """Adds the gradient of some lessons' part of the objective to what stands there."""
        lines = [line for lesson in lessons for line in lesson.lines]
        scores, row = self._scores(lessons, ratio)
        for line, score in zip(lines, scores.detach().split(_lengths(lines)), strict=True):
            if line.old is None:
                line.old = score
        old = torch.cat([line.old for line in lines if line.old is not None])
        advantage = torch.tensor([line.advantage for line in lines], device=scores.device)[row]
        times, clip = torch.exp(scores - old), self.settings.clip
        inside = times.clamp(1 - clip, 1 + clip)
        gain = torch.minimum(times * advantage, inside * advantage)
        apart = torch.zeros_like(scores)
        if self._start:
            away = torch.cat([line.start for line in lines if line.start is not None]) - scores
            apart = torch.exp(away) - away - 1  # k3: never below 0, its mean is the divergence
        ((self.settings.kl * apart - gain).sum() / tokens).backward()
        return float((times != inside).sum()) / tokens, float(apart.detach().sum()) / tokens

    def _scores(self, lessons: Sequence[Lesson], ratio: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-likelihood of every token that was said, and of which line it is."""
        documents = compressed(self.compressor, [lesson.task for lesson in lessons], ratio)
        pairs = [
            (line.conversation, document)
            for lesson, document in zip(lessons, documents, strict=True)
            for line in lesson.lines
        ]
        device = self.compressor.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            found = read(self.compressor, [one.sample() for one, _ in pairs], [one.blocks(of) for one, of in pairs])
        return -found.loss, found.row

    def _remember(self, lessons: Sequence[Lesson], ratio: int) -> None:
        """What the start would have thought of what was said."""
        now = self.weights()
        self.put(self._start)

        def part(some: Sequence[Lesson]) -> tuple[float, float]:
            lines = [line for lesson in some for line in lesson.lines]
            with torch.no_grad():
                scores, _ = self._scores(some, ratio)
            for line, score in zip(lines, scores.split(_lengths(lines)), strict=True):
                line.start = score
            return 0.0, 0.0

        try:
            self._parts.run(lessons, part, self._forget)
        finally:
            self.put(now)


def _lesson(task: Task, group: Sequence[Trajectory], advantages: Sequence[float]) -> Lesson:
    lines = (
        Line(conversation, advantage)
        for one, advantage in zip(group, advantages, strict=True)
        for conversation in one.conversations
    )
    return Lesson(task, tuple(lines))


def _lengths(lines: Sequence[Line]) -> list[int]:
    return [len(line.conversation.said) for line in lines]
