"""Documents of several windows with facts in them, and a question that takes one or two: what is played for rewards.

A fact ends in its value, or says "the same as for" another of the same wording: then the answer takes two hops. Every
task follows from seed and step.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from lychee_sgl.compressor.data import bury

if TYPE_CHECKING:
    from lychee_sgl.compressor.data import Samples
    from lychee_sgl.compressor.settings import ReinforceSettings

_SAME: Final = "the same as for"
_TRIES: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A document and a question about it.

    Attributes:
        windows: the document as tokens, window by window.
        question: what is asked.
        stem: how the answer begins; it is given.
        value: how it goes on.
        hops: facts that it takes.
    """

    windows: tuple[tuple[int, ...], ...]
    question: str
    stem: str
    value: str
    hops: int


class Documents:
    """Tasks over a text."""

    def __init__(self, samples: Samples, settings: ReinforceSettings) -> None:
        """Binds a text.

        Args:
            samples: its tokens, wordings and names.
            settings: windows, facts and seed.

        Raises:
            ValueError: the text or its names do not suffice.
        """
        self.samples, self.settings = samples, settings
        needed = settings.windows * samples.window
        if len(samples.tokens) <= needed:
            raise ValueError(f"the text has {len(samples.tokens)} tokens; allowed: more than {needed}, a document")
        names = len(samples.facts.names)
        if settings.others + 2 > names:
            raise ValueError(f"others is {settings.others}; allowed: up to {names - 2}, by the names")

    def batch(self, step: int) -> list[Task]:
        """A step's tasks."""
        return self.some(f"lychee-sgl reinforce {self.settings.seed} {step}", self.settings.tasks)

    def some(self, name: str, count: int) -> list[Task]:
        """Tasks that follow from a name."""
        draw = Random(name)
        return [self.task(draw) for _ in range(count)]

    def task(self, draw: Random) -> Task:
        """One task."""
        samples, count = self.samples, self.settings.windows
        for _ in range(_TRIES):  # in short windows not every fact has room
            told, stem, question, value, hops = self._facts(draw)
            longest = sum(len(samples.ids(f"{fact}.\n\n")) for fact in told[:hops])
            if longest <= samples.window:
                break
        if longest > samples.window:
            raise ValueError(f"window is {samples.window}; allowed: {longest} or more, for its facts to stand in it")
        at = draw.randrange(len(samples.tokens) - count * samples.window)
        places = [draw.randrange(count) for _ in told]
        if self.settings.loop:  # who reads in order meets the fact that points on before the one it points at
            places[:hops] = sorted(places[:hops])
        windows = []
        for number in range(count):
            first = at + number * samples.window
            here = [fact for fact, place in zip(told, places, strict=True) if place == number]
            facts = [samples.ids(f"{fact}.\n\n") for fact in here]
            windows.append(bury(draw, samples.tokens[first : first + samples.window], facts))
        return Task(windows=tuple(windows), question=question, stem=stem, value=value, hops=hops)

    def _facts(self, draw: Random) -> tuple[list[str], str, str, str, int]:
        """All facts, those that the answer takes first; stem, question, value and hops."""
        facts = self.samples.facts
        fact, question = draw.choice(facts.wordings)
        name, other, *rest = facts.some(draw, self.settings.others + 2)
        hops, value, stem = 1 + (draw.random() < self.settings.two_hop), facts.value(draw), fact.format(name=name)
        if hops == 1:
            told = [f"{stem} {value}"]
            rest.append(other)
        else:
            told = [f"{stem} {_SAME} {_the(other)}", f"{fact.format(name=other)} {value}"]
        # another of the same wording: to have read the wording alone is not enough
        wordings = [fact, *(draw.choice(facts.wordings)[0] for _ in rest[1:])]
        told += [f"{one.format(name=who)} {facts.value(draw)}" for one, who in zip(wordings, rest, strict=True)]
        return told, stem, question.format(name=name), value, hops


def _the(name: str) -> str:
    return f"the {name}" if name.islower() else name
