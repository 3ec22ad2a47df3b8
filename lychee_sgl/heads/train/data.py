"""What gates are trained on: a long prompt, and the tokens of its answer.

The prompt is prefilled densely, as the server does it; only the answer's tokens are decode steps, so only they are
trained on. Sample i of a source depends on its seed and on i alone: a resumed training sees what it would have seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from lychee_sgl.heads.haystack import Haystack
    from lychee_sgl.heads.measure import LoadedModel

NATO = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo", "lima",
    "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey", "xray",
    "yankee", "zulu",
)  # fmt: skip
"""The spelling alphabet: passkeys are drawn from it."""

_THINGS = (
    "violin", "lantern", "tractor", "compass", "piano", "bicycle", "telescope", "kettle", "anchor", "camera", "ladder",
    "umbrella", "hammer", "balloon", "carpet", "engine",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt with its answer, in tokens.

    Attributes:
        prompt: what is prefilled, up to where the model answers.
        answer: what is decoded; its last token is not the end of the message.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class Data(Protocol):
    """A source of samples without end."""

    @property
    def origin(self) -> str:
        """What it is, for provenance."""

    def sample(self, index: int) -> Sample:
        """The sample with this number, from 0 on; always the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passkeys:
    """Several passkeys at varied depths of a document of varied length; the question asks for some, in any order.

    A key is a row of words of the spelling alphabet, or one time in three a number of seven digits.

    Attributes:
        loaded: whose tokeniser and chat template are used.
        haystack: the text around the keys.
        seed: everything that is drawn follows from it and the sample's number.
        context: shortest and longest document, in tokens, about.
        needles: the most keys in a document; at least two.
        words: words of a key.
    """

    loaded: LoadedModel
    haystack: Haystack
    seed: int
    context: tuple[int, int]
    needles: int = 6
    words: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.needles <= len(_THINGS):
            raise ValueError(f"needles is {self.needles}; allowed: 2 to {len(_THINGS)}")
        if self.words < 1:
            raise ValueError(f"words is {self.words}; allowed: 1 or more")
        if not 64 <= self.context[0] <= self.context[1]:
            raise ValueError(f"context is {self.context}; allowed: two rising numbers from 64 on")

    @property
    def origin(self) -> str:
        """What the samples are."""
        low, high = self.context
        return (
            f"passkeys, 2 to {self.needles} in {low} to {high} tokens of {self.haystack.origin}, "
            f"haystack {self.haystack.digest}"
        )

    def sample(self, index: int) -> Sample:
        """See `Data`."""
        document, question, answer = self.text(index)
        tokens = self.loaded.answer(answer)
        return Sample(prompt=tuple(self.loaded.chat(f"{document}\n\n{question}")), answer=tuple(tokens))

    def text(self, index: int) -> tuple[str, str, str]:
        """Document, question and answer of a sample."""
        draw = Random(f"lychee-sgl passkeys {self.seed} {index}")
        count = draw.randint(2, self.needles)
        things = draw.sample(_THINGS, count)
        keys = {thing: self._key(draw) for thing in things}
        facts = [f"The pass key of the {thing} is {keys[thing]}." for thing in things]
        depths = sorted(draw.uniform(0.05, 0.95) for _ in things)
        document = self.haystack.bury(draw, facts, depths, draw.uniform(*self.context))
        asked = draw.sample(things, draw.randint(1, count))
        listed = " and ".join(f"the {thing}" for thing in asked)
        what = "What is the pass key of" if len(asked) == 1 else "What are the pass keys of"
        answer = " ".join(f"The pass key of the {thing} is {keys[thing]}." for thing in asked)
        return document, f"{what} {listed}?", answer

    def _key(self, draw: Random) -> str:
        if draw.random() < 1 / 3:
            return str(draw.randrange(1_000_000, 10_000_000))
        return " ".join(draw.choice(NATO) for _ in range(self.words))


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Questions with answers from a JSONL file, in an order drawn anew for every round.

    Attributes:
        samples: one a line.
        origin: the file's name and hash.
        seed: of the order.
    """

    samples: tuple[Sample, ...]
    origin: str
    seed: int

    def sample(self, index: int) -> Sample:
        """See `Data`."""
        turn, place = divmod(index, len(self.samples))
        order = list(range(len(self.samples)))
        Random(f"lychee-sgl questions {self.seed} {turn}").shuffle(order)
        return self.samples[order[place]]


def read_questions(path: Path, loaded: LoadedModel, *, longest: int, seed: int) -> Questions:
    """Read question-answer pairs.

    Args:
        path: a JSON object a line with the strings `context`, `question` and `answer` (`context` may be missing).
        loaded: whose tokeniser and chat template are used.
        longest: most tokens of a prompt with its answer.
        seed: of the order.

    Raises:
        ValueError: a line is not such an object, or is too long for the model; the message names file and line.
        OSError: the file cannot be read.
    """
    from hashlib import sha256

    raw = path.read_bytes()
    samples = []
    for number, line in enumerate(raw.decode("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
        context, question, answer = _fields(entry, f"{path}, line {number}")
        prompt = loaded.chat(f"{context}\n\n{question}" if context else question)
        tokens = loaded.answer(answer)
        if len(tokens) < 2:
            raise ValueError(f"{path}, line {number}: answer has {len(tokens)} tokens; allowed: 2 or more")
        if len(prompt) + len(tokens) > longest:
            raise ValueError(
                f"{path}, line {number}: {len(prompt) + len(tokens)} tokens; allowed: up to {longest} (--context)"
            )
        samples.append(Sample(prompt=tuple(prompt), answer=tuple(tokens)))
    if not samples:
        raise ValueError(f"{path} holds no question; allowed: one JSON object a line")
    origin = f"{len(samples)} questions of {path.name}, sha256 {sha256(raw).hexdigest()[:16]}"
    return Questions(samples=tuple(samples), origin=origin, seed=seed)


def _fields(entry: object, where: str) -> tuple[str, str, str]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: {entry!r:.60}; allowed: an object with context, question and answer")
    told = []
    for key in ("context", "question", "answer"):
        value = entry.get(key, "" if key == "context" else None)
        if not isinstance(value, str) or (key != "context" and not value.strip()):
            raise ValueError(f"{where}: {key} is {value!r:.60}; allowed: a string")
        told.append(value)
    return told[0], told[1], told[2]
