"""The memory loop as an environment: read a document chunk by chunk, rewrite a working memory, answer from it.

Observations are what a turn's prompt is made of, not the prompt: who plays renders them as the served loop does. Every
turn is a conversation of its own (the policy sees question, memory and one chunk, nothing else), and all conversations
of an episode share its advantage. Standard library only.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from lychee_sgl.heads.haystack import Haystack
from lychee_sgl.rewards.environment import ResetNeeded, Step, step_of
from lychee_sgl.rewards.gated import Gate, GatedRewards, Level

_MEMORY = re.compile(r"<memory>(.*?)</memory>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTask:
    """A question over a document.

    Attributes:
        question: what is asked.
        answers: what is accepted, one of them.
        evidence: what the memory has to hold at the end for the question to be answerable, a string each.
        chunks: the document, in order.
    """

    question: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...]
    chunks: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.answers or not self.chunks or not all(plain(text) for text in (*self.answers, *self.evidence)):
            raise ValueError("a memory task has no answer, no chunk, or an empty one; allowed: one or more of each")


@dataclass(frozen=True, slots=True)
class MemoryTurn:
    """What the policy sees.

    Attributes:
        question: what is asked.
        memory: the working memory, empty at first.
        chunk: the next piece of the document; None: now the answer is wanted.
        number: of the chunk, from 1; their count + 1 for the answer.
        of: chunks there are.
    """

    question: str
    memory: str
    chunk: str | None
    number: int
    of: int


def memory_rewards(at: float = 1.0, evidence: float = 0.2, form: float = 0.05) -> GatedRewards:
    """The usual order: outcome, kept evidence, format; lower ones count where the answer was right."""
    return GatedRewards((Level("outcome", Gate(at)), Level("evidence", weight=evidence), Level("format", weight=form)))


def count_words(text: str) -> int:
    """Length of a text where no tokeniser is given."""
    return len(text.split())


class MemoryLoop:
    """An environment whose actions are texts: `<memory>...</memory>` for a chunk, `<answer>...</answer>` at the end.

    A memory that is malformed or too long is not taken: the old one stays. Rewards of a step: `format` 1 for a
    well-formed text; `evidence`, the change of the share of evidence strings that the memory holds; `outcome`, with the
    answer, 1 if it is accepted.
    """

    def __init__(
        self,
        tasks: tuple[MemoryTask, ...],
        working_memory: int = 1024,
        count: Callable[[str], int] = count_words,
    ) -> None:
        """Prepares no episode yet.

        Args:
            tasks: what is asked; `reset` takes one by its seed.
            working_memory: the longest memory, as `count` counts.
            count: length of a text: a tokeniser's, or words.

        Raises:
            ValueError: there is no task, or no room for a memory.
        """
        if not tasks or working_memory < 1:
            raise ValueError(f"{len(tasks)} tasks, working memory {working_memory}; allowed: 1 or more of each")
        self.tasks, self.working_memory, self._count = tasks, working_memory, count
        self._task: MemoryTask | None = None
        self._next = 0
        self._memory, self._read = "", 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[MemoryTurn, dict[str, Any]]:
        """Begin an episode: task `seed` modulo their number, without a seed the next one."""
        number = (self._next if seed is None else seed) % len(self.tasks)
        self._next = number + 1
        self._task, self._memory, self._read = self.tasks[number], "", 0
        return self._turn(self._task), {"task": number}

    def step(self, action: str) -> Step[MemoryTurn]:
        """Take a new memory, or the answer.

        Raises:
            ResetNeeded: no episode is under way.
        """
        task = self._task
        if task is None:
            raise ResetNeeded("no document is being read; call reset")
        if self._read == len(task.chunks):
            self._task = None
            return self._answered(task, action)
        held = self._share(task)
        found = _MEMORY.findall(action)
        taken = len(found) == 1 and bool(found[0].strip()) and self._count(found[0].strip()) <= self.working_memory
        if taken:
            self._memory = found[0].strip()
        self._read += 1
        return step_of(self._turn(task), {"evidence": self._share(task) - held, "format": float(taken)})

    def close(self) -> None:
        """Forget the episode."""
        self._task = None

    def _answered(self, task: MemoryTask, action: str) -> Step[MemoryTurn]:
        found = _ANSWER.findall(action)
        said = plain(found[0] if len(found) == 1 else action)
        right = said in {plain(answer) for answer in task.answers}
        rewards = {"outcome": float(right), "format": float(len(found) == 1)}
        return step_of(self._turn(task), rewards, terminated=True, right=right)

    def _share(self, task: MemoryTask) -> float:
        memory = plain(self._memory)
        return sum(plain(text) in memory for text in task.evidence) / len(task.evidence) if task.evidence else 0.0

    def _turn(self, task: MemoryTask) -> MemoryTurn:
        chunk = task.chunks[self._read] if self._read < len(task.chunks) else None
        return MemoryTurn(task.question, self._memory, chunk, self._read + 1, len(task.chunks))


def fact_tasks(
    haystack: Haystack, count: int, *, chunks: int, chunk_words: int, hops: int, seed: int
) -> tuple[MemoryTask, ...]:
    """Questions about invented facts in real prose.

    Args:
        haystack: the prose.
        count: how many.
        chunks: of a document.
        chunk_words: words of a chunk, about.
        hops: facts that the answer takes, 1 or 2; with 2 they stand in different chunks, in an order that is drawn.
        seed: everything that is drawn follows from it.

    Raises:
        ValueError: a number is out of range, or the haystack has too little text.
    """
    if hops not in (1, 2) or chunks < hops or count < 1 or chunk_words < 8:
        raise ValueError(
            f"count {count}, chunks {chunks}, chunk_words {chunk_words}, hops {hops}; "
            "allowed: hops 1 or 2, as many chunks, 8 words, 1 task or more"
        )
    draw = Random(f"lychee-sgl memory loop {seed}")
    return tuple(_fact_task(haystack, draw, chunks, chunk_words, hops) for _ in range(count))


_PLACES = ("attic", "cellar", "garden shed", "library", "workshop", "greenhouse", "boathouse", "chapel")
_THINGS = ("violin", "lantern", "compass", "telescope", "kettle", "anchor", "camera", "globe")


def _fact_task(haystack: Haystack, draw: Random, chunks: int, chunk_words: int, hops: int) -> MemoryTask:
    thing, place = draw.choice(_THINGS), draw.choice(_PLACES)
    number = str(draw.randrange(1_000_000, 10_000_000))
    if hops == 1:
        facts = [f"The number painted on the {thing} is {number}."]
        question = f"What number is painted on the {thing}?"
        evidence: tuple[str, ...] = (number,)
    else:
        facts = [f"The {thing} is kept in the {place}.", f"The number on the door of the {place} is {number}."]
        question = f"What is the number on the door of the room in which the {thing} is kept?"
        evidence = (place, number)
        draw.shuffle(facts)
    words = haystack.bury(draw, (), (), chunks * chunk_words, chars_per_token=6.0).split()
    size = max(1, len(words) // chunks)
    pieces = [" ".join(words[i * size : (i + 1) * size]) for i in range(chunks)]
    for at, fact in zip(sorted(draw.sample(range(chunks), len(facts))), facts, strict=True):
        pieces[at] = f"{pieces[at]} {fact}"
    return MemoryTask(question=question, answers=(number,), evidence=evidence, chunks=tuple(pieces))


def plain(text: str) -> str:
    """Letters and digits in lower case, single spaces, no full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".")
