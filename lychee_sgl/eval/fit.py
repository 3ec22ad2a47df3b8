"""Texts of a wanted length: how much of a task's filling fits."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.sample import Sample, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRACE_SLACK = 1.15
"""A worked answer may get longer than it need be by this factor, and `TRACE_EXTRA` tokens."""
TRACE_EXTRA = 16


class Counter(Protocol):
    """Counts the tokens of a prompt with its template, and of the prefix behind it."""

    def __call__(self, prompt: str, prefix: str) -> int:
        """Return the number of tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a generator is told.

    Attributes:
        size: amount of filling: words, sentences, documents, steps, as the task counts.
        length: tokens that the sample was asked to have.
        number: which sample.
        draw: what differs from sample to sample.
        seed: of the run, for what is the same in all samples.
    """

    size: int
    length: int
    number: int
    draw: Random
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A task that can be made at any length.

    Attributes:
        name: as in configurations.
        summary: what is asked, in a few words.
        metric: of `lychee_sgl.eval.metrics`.
        max_tokens: longest answer; 0: as long as the worked one and a little more.
        build: makes a text.
        step: by how much the filling is made smaller when a sample has come out too long, by length; the least, too.
        depth: where the needle of a sample stands, by its number.
        choose: overrides the search for the amount of filling.
        most: the most filling there is; None: as much as is wanted.
    """

    name: str
    summary: str
    metric: str
    max_tokens: int
    build: Callable[[Request], Text]
    step: Callable[[int], int]
    depth: Callable[[int], float] | None = None
    choose: Callable[[Recipe, int, int, Counter], int] | None = None
    most: Callable[[], int] | None = None

    def samples(self, length: int, count: int, seed: int, tokens: Counter) -> Iterator[Sample]:
        """Make samples one after the other.

        Args:
            length: tokens of each: template, prompt, prefix and longest answer.
            count: how many.
            seed: everything follows from it, name, length and number.
            tokens: counts them.

        Raises:
            EvalError: even with the least filling a sample is longer.
        """
        size = (self.choose or search)(self, length, seed, tokens)
        for number in range(count):
            text, answer = self._fitting(size, length, number, seed, tokens)
            yield Sample(
                task=self.name,
                length=length,
                number=number,
                prompt=text.prompt,
                prefix=text.prefix,
                answers=text.answers,
                metric=self.metric,
                max_tokens=answer,
                depth=None if self.depth is None else self.depth(number),
                options=text.options,
            )

    def make(self, size: int, length: int, number: int, seed: int, tokens: Counter) -> tuple[Text, int, int]:
        """One text of a size, its tokens in all, and those of its longest answer."""
        draw = Random(f"lychee-sgl eval {seed} {self.name} {length} {number}")
        text = self.build(Request(size=size, length=length, number=number, draw=draw, seed=seed))
        prompt = tokens(text.prompt, text.prefix)
        answer = self.max_tokens
        if not answer:
            worked = tokens(text.prompt, f"{text.prefix}{text.worked}") - prompt
            answer = int(TRACE_SLACK * worked) + TRACE_EXTRA
        return text, prompt + answer, answer

    def _fitting(self, size: int, length: int, number: int, seed: int, tokens: Counter) -> tuple[Text, int]:
        step = self.step(length)
        while True:
            text, found, answer = self.make(size, length, number, seed, tokens)
            if found <= length:
                return text, answer
            if size <= step:
                raise EvalError(f"{self.name} at a length of {length}: the least there can be is {found} tokens")
            size = max(step, size - step)


def search(recipe: Recipe, length: int, seed: int, tokens: Counter) -> int:
    """Find the largest amount of filling with which one drawn text fits, by doubling and bisection.

    Raises:
        EvalError: even the least does not fit.
    """
    step = recipe.step(length)

    def measure(size: int) -> int:
        return recipe.make(size, length, -1, seed, tokens)[1]

    least = measure(step)
    if least > length:
        raise EvalError(f"{recipe.name} at a length of {length}: the least there can be is {least} tokens")
    most = recipe.most() if recipe.most is not None else None
    low, high = step, 2 * step
    while (most is None or high <= most) and measure(high) <= length:
        low, high = high, 2 * high
    if most is not None and high > most:
        if measure(most) <= length:
            raise EvalError(f"{recipe.name} at a length of {length}: the most there can be is {measure(most)} tokens")
        high = most
    while high - low > 1:
        middle = (low + high) // 2
        if measure(middle) <= length:
            low = middle
        else:
            high = middle
    return low
