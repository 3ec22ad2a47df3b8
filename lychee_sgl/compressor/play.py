"""Trajectories: a document as blocks, a question, and what the reader says, at once or window by window with notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import torch

from lychee_sgl.compressor.data import Sample
from lychee_sgl.compressor.sampler import Said, say, stop_tokens
from lychee_sgl.rewards.environments.memory_loop import MemoryLoop, MemoryTask, memory_rewards, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lychee_sgl.compressor.data import Samples
    from lychee_sgl.compressor.documents import Task
    from lychee_sgl.compressor.model import Compressor
    from lychee_sgl.compressor.settings import ReinforceSettings
    from lychee_sgl.rewards.environment import Step
    from lychee_sgl.rewards.environments.memory_loop import MemoryTurn
    from lychee_sgl.rewards.gated import GatedRewards

LEVELS: Final = ("outcome", "evidence", "format")
"""What is rewarded, the highest first."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the reader is shown.

    Attributes:
        windows: whose blocks, by their numbers in the document.
        before: tokens in front of them.
        after: tokens behind them.
    """

    windows: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt and what was said."""

    prompt: Prompt
    said: tuple[int, ...]

    def sample(self) -> Sample:
        """For `read`, which scores what was said."""
        return Sample("answer", (), self.prompt.before, self.prompt.after, self.said)

    def blocks(self, document: torch.Tensor) -> torch.Tensor:
        """Of the document's blocks [windows, m, hidden] those that the prompt shows, [n, hidden]."""
        if not self.prompt.windows:
            return document[:0].flatten(0, 1)
        return torch.cat([document[window] for window in self.prompt.windows])  # no index that a device waits for


@dataclass(slots=True)
class Trajectory:
    """All conversations about one task.

    Attributes:
        conversations: in order.
        rewards: of each, by level: what `GatedRewards` takes.
        right: whether the answer is.
    """

    conversations: list[Conversation] = field(default_factory=list)
    rewards: list[Mapping[str, float]] = field(default_factory=list)
    right: bool = False


def chain_of(settings: ReinforceSettings) -> GatedRewards:
    """How the rewards add up."""
    chain = memory_rewards(settings.gate, settings.evidence, settings.form)
    return chain if settings.gated else chain.direct()


class Player:
    """Plays tasks with a compressor and its reader."""

    def __init__(self, compressor: Compressor, samples: Samples, settings: ReinforceSettings) -> None:
        """Binds a policy.

        Args:
            compressor: and its reader.
            samples: whose tokeniser and chat template render prompts.
            settings: how a trajectory goes.
        """
        self.compressor, self.samples, self.settings = compressor, samples, settings
        self._stops = stop_tokens(samples.tokenizer, compressor.shape.vocabulary)

    def play(
        self, tasks: Sequence[Task], ratio: int, *, group: int = 1, draw: torch.Generator | None = None
    ) -> list[list[Trajectory]]:
        """Play each task some times.

        Args:
            tasks: one or more.
            ratio: of the blocks.
            group: trajectories of each task.
            draw: for sampling; None: greedy.

        Returns:
            A group for each task.

        Raises:
            NoNumbers: the model's scores are not finite.
        """
        with torch.no_grad():
            documents = compressed(self.compressor, tasks, ratio)
        owners = [task for task in range(len(tasks)) for _ in range(group)]
        played = [Trajectory() for _ in owners]
        go = self._loop if self.settings.loop else self._plain
        go([tasks[task] for task in owners], [documents[task] for task in owners], played, draw)
        return [played[first : first + group] for first in range(0, len(played), group)]

    def _plain(
        self,
        tasks: Sequence[Task],
        documents: Sequence[torch.Tensor],
        played: Sequence[Trajectory],
        draw: torch.Generator | None,
    ) -> None:
        every = tuple(range(self.settings.windows))
        shown = {task: self._prompt(task, every, "") for task in {*tasks}}
        prompts = [shown[task] for task in tasks]
        answers = self._say(prompts, documents, draw)
        for task, one, prompt, said in zip(tasks, played, prompts, answers, strict=True):
            text, value = plain(self._text(said)), plain(task.value)
            one.right = text == value
            one.conversations.append(Conversation(prompt, said.tokens))
            begun = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, value, strict=False)))
            one.rewards.append(
                {"outcome": float(one.right), "evidence": begun / len(value), "format": self._brief(said)}
            )

    def _brief(self, said: Said) -> float:
        """1 for an end at once, less for a later one; 0 without one: what can be had without an answer."""
        return max(0.0, 1 - (len(said.tokens) - 1) / self.settings.limit) if said.ended else 0.0

    def _loop(
        self,
        tasks: Sequence[Task],
        documents: Sequence[torch.Tensor],
        played: Sequence[Trajectory],
        draw: torch.Generator | None,
    ) -> None:
        worlds = [_world(task) for task in tasks]
        turns = [world.reset()[0] for world in worlds]
        for _ in range(self.settings.windows + 1):
            prompts = [self._turn(task, turn) for task, turn in zip(tasks, turns, strict=True)]
            told = self._say(prompts, documents, draw)
            for number, said in enumerate(told):
                step = worlds[number].step(_action(tasks[number], turns[number], self._text(said), said.ended))
                turns[number] = step.observation
                _note(played[number], Conversation(prompts[number], said.tokens), step)

    def _say(
        self, prompts: Sequence[Prompt], documents: Sequence[torch.Tensor], draw: torch.Generator | None
    ) -> list[Said]:
        rows = []
        for prompt, document in zip(prompts, documents, strict=True):
            before, after = (
                self.compressor.embed(torch.tensor(ids, dtype=torch.long, device=document.device))
                for ids in (prompt.before, prompt.after)
            )
            rows.append(torch.cat((before, Conversation(prompt, ()).blocks(document).to(before.dtype), after)))
        return say(self.compressor, rows, limit=self.settings.limit, stops=self._stops, draw=draw)

    def _prompt(self, task: Task, windows: tuple[int, ...], notes: str) -> Prompt:
        before, after = self.samples.chat(f"{notes}\n\n{task.question}" if notes else task.question)
        return Prompt(windows, before, (*after, *self.samples.ids(task.stem)))

    def _turn(self, task: Task, turn: MemoryTurn) -> Prompt:
        return self._prompt(task, () if turn.chunk is None else (turn.number - 1,), turn.memory)

    def _text(self, said: Said) -> str:
        text: str = self.samples.tokenizer.decode(said.tokens, skip_special_tokens=True)
        return text


def compressed(compressor: Compressor, tasks: Sequence[Task], ratio: int) -> torch.Tensor:
    """Blocks of documents, [tasks, windows, m, hidden]."""
    windows = torch.tensor([task.windows for task in tasks], device=compressor.device)
    device = compressor.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        blocks: torch.Tensor = compressor(windows.flatten(0, 1), ratio)
    return blocks.unflatten(0, windows.shape[:2])


def _world(task: Task) -> MemoryLoop:
    """The loop over a document whose chunks only the policy sees, as blocks."""
    chunks = tuple(f"window {number}" for number in range(len(task.windows)))
    asked = MemoryTask(question=task.question, answers=(task.value,), evidence=(task.value,), chunks=chunks)
    return MemoryLoop((asked,))


def _action(task: Task, turn: MemoryTurn, text: str, ended: bool) -> str:
    """What was said in the words of the environment; what came to no end is not well-formed."""
    name, body = ("answer", text) if turn.chunk is None else ("memory", f"{task.stem}{text}")
    return f"<{name}>{body}" + (f"</{name}>" if ended else "")


def _note(one: Trajectory, conversation: Conversation, step: Step[MemoryTurn]) -> None:
    one.conversations.append(conversation)
    one.rewards.append(step.rewards)
    one.right = bool(step.info.get("right"))
