"""Asking all questions of all cells, under all variants; stops at a time limit and goes on where it stopped."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lychee_sgl.heads.evaluate.store import Answer, Answers
from lychee_sgl.heads.evaluate.tasks import TASKS, Cell, Task, question
from lychee_sgl.heads.evaluate.variants import Variant, answer_all
from lychee_sgl.heads.hybrid_hf import prefill
from lychee_sgl.heads.rows import check_supported

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lychee_sgl.heads.evaluate.tasks import Question
    from lychee_sgl.heads.haystack import Haystack
    from lychee_sgl.heads.measure import LoadedModel

DENSE = Variant(name="dense", plan=None, budget=None)

LONGEST: dict[Task, int] = {"single": 24, "multi-key": 24, "multi-value": 48}
"""Tokens of an answer: a sentence with a number of seven digits has some fifteen, a list of two some thirty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamSettings:
    """Which questions are asked.

    Attributes:
        tasks: of `TASKS`.
        lengths: tokens of the documents.
        questions: of each cell.
        seed: of all questions.
    """

    tasks: tuple[Task, ...] = TASKS
    lengths: tuple[int, ...] = (2000, 4000, 7500)
    questions: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"tasks holds {task!r}; allowed: {', '.join(TASKS)}")
        if not self.tasks or not self.lengths or min(self.lengths) < 64:
            raise ValueError(f"lengths is {self.lengths}; allowed: numbers from 64 on, and at least one task")
        if self.questions < 1 or self.seed < 0:
            raise ValueError(f"questions is {self.questions}, seed {self.seed}; allowed: 1 or more, and 0 or more")

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All tasks at all lengths."""
        return tuple(Cell(task=task, tokens=tokens) for tokens in self.lengths for task in self.tasks)


def run_exam(
    loaded: LoadedModel,
    variants: Sequence[Variant],
    settings: ExamSettings,
    *,
    haystack: Haystack,
    folder: Path,
    share: tuple[int, int] = (0, 1),
    until: float | None = None,
    tell: Callable[[int, int], None] = lambda done, all_questions: None,
    at_once: int = 128,
) -> tuple[Answers, bool]:
    """Ask; what the folder holds already is not asked again.

    Questions go round the cells, so that a run cut short has as many of each. The dense model answers each first: its
    reply is what `same` compares with.

    Args:
        loaded: the model.
        variants: what to answer under, with different keys.
        settings: which questions.
        haystack: text that nothing was calibrated or trained on.
        folder: where answers are kept, one file a share.
        share: (i, k): ask every k-th question, from the i-th on; k processes can share the work.
        until: `time.monotonic` at which to stop between two questions, or None.
        tell: told how many questions are done, and of how many.
        at_once: rows of a batch.

    Returns:
        All answers in the folder, and whether those of this share are complete.

    Raises:
        ValueError: the model is not supported, two variants have one key, a file holds other questions, or there
            is no such share.
    """
    check_supported(loaded.model)
    keys = [variant.key for variant in variants]
    if len({*keys}) != len(keys) or DENSE.key in keys:
        raise ValueError(f"variants are {', '.join(sorted(keys))}; allowed: different names, none of them dense")
    density = chars_per_token(loaded, haystack)
    asked = {**asdict(settings), "model": loaded.shape.name, "dtype": str(loaded.model.dtype),
             "haystack": haystack.digest, "chars_per_token": density}  # fmt: skip
    part, parts = share
    if not 0 <= part < parts:
        raise ValueError(f"share is {share}; allowed: (i, k) with i from 0 to k - 1")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"part-{part}.jsonl"
    answers = Answers.open(path, asked)
    for other in sorted(folder.glob("part-*.jsonl")):
        if other != path:
            answers.take_in(Answers.read(other, asked))
    plan = [(cell, number) for number in range(settings.questions) for cell in settings.cells]
    for done, (cell, number) in list(enumerate(plan))[part::parts]:
        missing = [variant for variant in variants if not answers.has(f"{cell.name}/{number}", variant.key)]
        if not missing and answers.has(f"{cell.name}/{number}", DENSE.key):
            continue
        if until is not None and time.monotonic() >= until:
            return answers, False
        item, prompt = fitted(loaded, cell, number, settings.seed, haystack, density)
        replies = answer_all(
            loaded.model, prefill(loaded.model, prompt), [DENSE, *missing],
            stop=loaded.stop, longest=LONGEST[cell.task], at_once=at_once,
        )  # fmt: skip
        said = [loaded.tokenizer.decode(reply.tokens) for reply in replies]
        about: dict[str, Any] = {
            "wanted": len(item.answers), "tokens": len(prompt), "depths": list(item.depths), "dense_reply": said[0],
        }  # fmt: skip
        answers.add(item.key, about, {
            variant.key: Answer(item.found(words), reply.tokens == replies[0].tokens, reply.recall)
            for variant, words, reply in zip((DENSE, *missing), said, replies, strict=True)
        })  # fmt: skip
        tell(done + 1, len(plan))
    return answers, True


def chars_per_token(loaded: LoadedModel, haystack: Haystack) -> float:
    """Of the model's tokeniser on this text."""
    prose = haystack.paragraphs[:500]
    return round(sum(map(len, prose)) / sum(len(loaded.answer(block)) for block in prose), 3)


def fitted(
    loaded: LoadedModel, cell: Cell, number: int, seed: int, haystack: Haystack, density: float
) -> tuple[Question, list[int]]:
    """A question whose prompt has the cell's length, and its tokens.

    Some pages have more tokens a character than others, by up to a fifth: the document is cut anew by what the first
    try came to.
    """
    for _ in range(2):
        item = question(cell, number, seed=seed, haystack=haystack, chars_per_token=density)
        prompt = loaded.chat(item.text)
        density *= cell.tokens / len(prompt)
    return item, prompt
