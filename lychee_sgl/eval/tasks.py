"""The catalogue: which tasks there are, and the samples of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.files import DATASETS, file_samples
from lychee_sgl.eval.ruler import ruler_recipes
from lychee_sgl.eval.ruler.needles import grid_recipe
from lychee_sgl.eval.ruler.questions import SOURCES, question_recipe
from lychee_sgl.eval.text import Prose
from lychee_sgl.eval.tokens import shortened
from lychee_sgl.eval.traces import trace_recipes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lychee_sgl.eval.config import Settings, Task
    from lychee_sgl.eval.fit import Counter, Recipe
    from lychee_sgl.eval.sample import Sample

GRID_DEPTHS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the catalogue."""

    name: str
    summary: str
    source: str
    metric: str
    needs: str = ""


def catalogue() -> tuple[Entry, ...]:
    """All tasks."""
    prose = Prose("reference")
    ruler = [Entry(name=r.name, summary=r.summary, source="RULER", metric=_told(r)) for r in ruler_recipes(prose)]
    ruler += [
        Entry(name=name, summary="a question among documents", source="RULER", metric="one answer held", needs=file)
        for name, file in SOURCES.items()
    ]
    grid = grid_recipe(prose, GRID_DEPTHS)
    ours = [Entry(name=grid.name, summary=grid.summary, source="ours", metric=_told(grid))]
    ours += [Entry(name=r.name, summary=r.summary, source="ours", metric=_told(r)) for r in trace_recipes()]
    kinds = {
        "f1": "F1 of words", "rouge": "ROUGE-L", "classes": "class named", "number": "share of numbers",
        "code": "similarity",
    }  # fmt: skip
    files = [
        Entry(name=f"longbench/{name}", summary="", source="LongBench", metric=kinds[d.kind], needs=f"{name}.jsonl")
        for name, d in DATASETS.items()
    ]
    files += [
        Entry(
            name="longbench2", summary="four choices", source="LongBench v2", metric="letter named", needs="data.json"
        ),
        Entry(
            name="maths", summary="AIME, MATH and the like", source="yours", metric="equal expressions",
            needs="a file with problem and answer",
        ),
    ]  # fmt: skip
    return (*ruler, *ours, *files)


def _told(recipe: Recipe) -> str:
    return {"match_all": "share of answers held", "final_line": "last line equal"}[recipe.metric]


def make_samples(settings: Settings, count: Counter) -> Iterator[Sample]:
    """All samples of a run, task by task, shortest first.

    Args:
        settings: what to make.
        count: counts tokens.

    Raises:
        EvalError: a task is unknown, lacks its file, or cannot be made at a length.
    """
    prose = Prose(settings.haystack)
    recipes = {recipe.name: recipe for recipe in (*ruler_recipes(prose), *trace_recipes())}
    for task in settings.tasks:
        lengths = sorted(task.lengths or settings.lengths)
        samples = task.samples or settings.samples
        if task.name in recipes or task.name == "needle" or task.name in SOURCES:
            recipe = recipes.get(task.name) or _made(task, prose)
            for length in lengths:
                yield from recipe.samples(length, samples, settings.seed, count)
        else:
            yield from _from_file(task, lengths, samples, count)


def _made(task: Task, prose: Prose) -> Recipe:
    if task.name == "needle":
        return grid_recipe(prose, task.depths or GRID_DEPTHS)
    if task.file is None:
        raise EvalError(f"{task.name} needs {SOURCES[task.name]}: name it as `file` of the task")
    return question_recipe(task.name, task.file)


def _from_file(task: Task, lengths: list[int], samples: int, count: Counter) -> Iterator[Sample]:
    known = [entry.name for entry in catalogue()]
    if task.name not in known:
        raise EvalError(f"task is {task.name!r}; allowed: {', '.join(known)}")
    if task.file is None:
        raise EvalError(f"{task.name} needs a file: name it as `file` of the task")
    length = lengths[-1]
    for sample in file_samples(task.name, task.file, max_tokens=task.max_tokens)[:samples]:
        cut = shortened(sample, length, count) if task.name.startswith("longbench") else sample
        yield replace(cut, length=length)


def fingerprints(settings: Settings) -> dict[str, str]:
    """First 16 digits of the SHA-256 of everything outside the configuration that samples are made of.

    Raises:
        EvalError: a task's file cannot be read.
    """
    found = {}
    for task in settings.tasks:
        if task.file is not None:
            try:
                found[f"{task.name}: {task.file.name}"] = sha256(task.file.read_bytes()).hexdigest()[:16]
            except OSError as error:
                raise EvalError(f"{task.name}: its file cannot be read: {error}") from error
    if any(task.name.startswith(("niah", "needle")) for task in settings.tasks):
        found["haystack"] = Prose(settings.haystack).haystack.digest
    return found
