"""Three needle tasks over text, wordings and names that no calibration or training prompt has.

* `single`: one fact, one question.
* `multi-key`: four facts of one wording about different places, one of them is asked for.
* `multi-value`: two facts about one place, both are asked for; right only with both.
"""

from dataclasses import dataclass
from random import Random
from typing import Literal

from lychee_sgl.heads.haystack import Haystack

Task = Literal["single", "multi-key", "multi-value"]
TASKS: tuple[Task, ...] = ("single", "multi-key", "multi-value")

_WORDINGS = (
    (
        "The special magic number for {name} is {number}.",
        "What is the special magic number for {name}?",
        "One of the special magic numbers for {name} is {number}.",
        "What are all the special magic numbers for {name} in the text above?",
    ),
    (
        "The winning ticket number in {name} is {number}.",
        "What is the winning ticket number in {name}?",
        "One of the winning ticket numbers in {name} is {number}.",
        "What are all the winning ticket numbers in {name} in the text above?",
    ),
    (
        "The phone number of the {name} office is {number}.",
        "What is the phone number of the {name} office?",
        "One of the phone numbers of the {name} office is {number}.",
        "What are all the phone numbers of the {name} office in the text above?",
    ),
)
_PLACES = (
    "Lisbon", "Oslo", "Nairobi", "Quito", "Hanoi", "Dublin", "Ankara", "Perth", "Montreal", "Krakow", "Seville",
    "Bergen", "Porto", "Lagos", "Tampere", "Cusco",
)  # fmt: skip
_FACTS: dict[Task, int] = {"single": 1, "multi-key": 4, "multi-value": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A task at a length.

    Attributes:
        task: which.
        tokens: of the document, about.
    """

    task: Task
    tokens: int

    @property
    def name(self) -> str:
        """As in reports: `single-2000`."""
        return f"{self.task}-{self.tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a cell.

    Attributes:
        cell: where it counts.
        number: which of the cell's questions.
        text: document and question, one user message.
        answers: numbers of seven digits, all of which are asked for.
        depths: where the facts stand, as shares of the document.
    """

    cell: Cell
    number: int
    text: str
    answers: tuple[str, ...]
    depths: tuple[float, ...]

    @property
    def key(self) -> str:
        """Its name in a run: `single-2000/17`."""
        return f"{self.cell.name}/{self.number}"

    def found(self, reply: str) -> int:
        """How many of the numbers a reply holds, however it groups their digits."""
        told = reply.replace(",", "").replace(" ", "").replace("-", "")
        return sum(answer in told for answer in self.answers)


def question(cell: Cell, number: int, *, seed: int, haystack: Haystack, chars_per_token: float) -> Question:
    """One question; the same for the same arguments.

    Args:
        cell: task and length.
        number: from 0 on. Depths go through the whole document as the number grows.
        seed: everything that is drawn follows from it, the cell and the number.
        haystack: the text.
        chars_per_token: of the tokeniser on this text.

    Raises:
        ValueError: the task is unknown, or the haystack is too small.
    """
    if cell.task not in TASKS:
        raise ValueError(f"task is {cell.task!r}; allowed: {', '.join(TASKS)}")
    draw = Random(f"lychee-sgl questions {seed} {cell.name} {number}")
    count = _FACTS[cell.task]
    wording = draw.choice(_WORDINGS)
    fact, asked = wording[2:] if cell.task == "multi-value" else wording[:2]
    values = [str(value) for value in draw.sample(range(1_000_000, 10_000_000), count)]
    places = draw.sample(_PLACES, count)
    if cell.task == "multi-value":
        places = places[:1] * count
    facts = [fact.format(name=place, number=value) for place, value in zip(places, values, strict=True)]
    # the first fact, which is asked for, at evenly spread depths: 0.618 is the golden ratio's step through the unit
    depths = [0.05 + 0.9 * ((number * 0.6180339887 + 0.5) % 1.0)]
    depths += [draw.uniform(0.05, 0.95) for _ in facts[1:]]
    order = sorted(range(count), key=lambda i: depths[i])
    document = haystack.bury(draw, [facts[i] for i in order], [depths[i] for i in order], cell.tokens, chars_per_token)
    return Question(
        cell=cell,
        number=number,
        text=f"{document}\n\n{asked.format(name=places[0])}",
        answers=tuple(values) if cell.task == "multi-value" else (values[0],),
        depths=tuple(round(document.index(fact) / len(document), 3) for fact in facts),
    )
