"""What the records of a run say: scores, distances, lengths, times, recall, each with what it is a mean of."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.eval.config import Arm, Settings, parse_settings
from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.stats import Estimate, difference, mean, mean_of, scores_mean
from lychee_sgl.eval.store import Record, Store, read_records, read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from lychee_sgl.eval.sample import Sample

ABLE: Final = 0.3
"""A task counts as one the model can do when the baseline scores at least this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that was asked and answered.

    Attributes:
        samples: by key, in their order.
        arms: in their order.
        base: name of the baseline.
        records: by sample and arm.
        runs: `run.json` of every folder.
    """

    samples: dict[str, Sample]
    arms: tuple[Arm, ...]
    base: str
    records: dict[tuple[str, str], Record]
    runs: tuple[dict[str, Any], ...]

    def of(self, arm: str, keep: Callable[[Sample], bool]) -> list[Record]:
        """An arm's records of some samples, errors included."""
        found = (self.records.get((key, arm)) for key, sample in self.samples.items() if keep(sample))
        return [record for record in found if record is not None]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in their order."""
        return tuple(dict.fromkeys(sample.task for sample in self.samples.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An arm over some samples.

    Attributes:
        arm: its name.
        asked: samples that it should have answered.
        answered: those with an answer.
        errors: those with an error.
        score: mean score.
        distance: mean of paired differences from the baseline; None for the baseline itself.
        partial: of traces, the mean share of lines up to the first wrong one.
        answer_tokens: mean length of an answer.
        longer: that, over the baseline's on the same samples.
        seconds: mean time of an answer, its prompt in the cache.
        seconds_per_solved: all seconds over the sum of the scores; None where nothing was solved.
        attended: mean share of KV entries read.
        recall: mean attention mass.
    """

    arm: str
    asked: int
    answered: int
    errors: int
    score: Estimate | None
    distance: Estimate | None
    partial: float | None
    answer_tokens: float | None
    longer: float | None
    seconds: float | None
    seconds_per_solved: float | None
    attended: Estimate | None
    recall: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values; estimates as value, low and high."""
        found: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            found[name] = value.as_list() if isinstance(value, Estimate) else value
            if isinstance(value, float):
                found[name] = round(value, 5)
        return found


def of_task(task: str, length: int | None = None) -> Callable[[Sample], bool]:
    """Whether a sample is of a task, and of a length where one is given."""
    return lambda sample: sample.task == task and length in (None, sample.length)


def load(folders: Sequence[Path], baseline: str | None = None) -> Results:
    """Read runs of the same samples as one; their arms stand side by side.

    Args:
        folders: of the runs.
        baseline: the arm that distances are taken from; None: the first run's.

    Raises:
        EvalError: a folder holds no run or no samples, two have an arm of one name, their samples differ, or the
            baseline is none of the arms.
    """
    samples: dict[str, Sample] = {}
    arms: list[Arm] = []
    records: dict[tuple[str, str], Record] = {}
    runs = []
    base = ""
    for folder in folders:
        run = read_run(folder)
        settings: Settings = parse_settings(run["identity"]["settings"], f"{folder}/run.json")
        found = Store(folder).samples()
        if found is None:
            raise EvalError(f"{folder} has no samples yet")
        theirs = {sample.key: sample for sample in found}
        samples = samples or theirs
        if theirs != samples:
            raise EvalError(f"{folder} asks other samples than {folders[0]}; allowed are runs of the same ones")
        twice = {arm.name for arm in arms} & {arm.name for arm in settings.arms}
        if twice:
            raise EvalError(f"{folder} has the arm {min(twice)!r} of another folder; give one of them another name")
        arms += settings.arms
        base = base or settings.base.name
        records |= read_records(folder)
        runs.append(run)
    if baseline is not None and baseline not in [arm.name for arm in arms]:
        raise EvalError(f"--baseline is {baseline!r}; allowed: {', '.join(arm.name for arm in arms)}")
    return Results(samples=samples, arms=tuple(arms), base=baseline or base, records=records, runs=tuple(runs))


def line(results: Results, arm: str, keep: Callable[[Sample], bool]) -> Line:
    """An arm over the samples that `keep` keeps; means over several tasks weigh each task the same."""
    asked = sum(keep(sample) for sample in results.samples.values())
    records = results.of(arm, keep)
    answered = [record for record in records if record.error is None]
    base = {record.sample: record for record in results.of(results.base, keep) if record.error is None}
    both = [(record, base[record.sample]) for record in answered if record.sample in base]
    seconds = [record.seconds for record in answered if record.seconds is not None]
    solved = sum(record.score or 0.0 for record in answered)
    ours, theirs = (_mean(pair[side].answer_tokens for pair in both) for side in (0, 1))
    return Line(
        arm=arm,
        asked=asked,
        answered=len(answered),
        errors=len(records) - len(answered),
        score=_over_tasks(results, answered, lambda record: record.score, scores_mean),
        distance=None if arm == results.base else _distance(results, both),
        partial=_mean(record.partial for record in answered),
        answer_tokens=_mean(record.answer_tokens for record in answered),
        longer=ours / theirs if ours and theirs else None,
        seconds=_mean(seconds),
        seconds_per_solved=sum(seconds) / solved if solved and len(seconds) == len(answered) else None,
        attended=_over_tasks(results, answered, lambda record: record.attended_fraction),
        recall=_over_tasks(results, answered, lambda record: record.recall),
    )


def _by_task(results: Results, records: Iterable[Record]) -> list[list[Record]]:
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[results.samples[record.sample].task].append(record)
    return list(groups.values())


def _over_tasks(
    results: Results,
    records: Iterable[Record],
    value: Callable[[Record], float | None],
    estimate: Callable[[list[float]], Estimate] = mean,
) -> Estimate | None:
    groups = [
        [found for record in group if (found := value(record)) is not None] for group in _by_task(results, records)
    ]
    estimates = [estimate(group) for group in groups if group]
    return mean_of(estimates) if estimates else None


def _distance(results: Results, both: Sequence[tuple[Record, Record]]) -> Estimate | None:
    base = {record.sample: other.score or 0.0 for record, other in both}
    groups = _by_task(results, (record for record, _ in both))
    estimates = [
        difference([one.score or 0.0 for one in group], [base[one.sample] for one in group]) for group in groups
    ]
    return mean_of(estimates) if estimates else None


def _mean(values: Iterable[float | int | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def able_tasks(results: Results) -> tuple[str, ...]:
    """Tasks that the baseline can do."""
    kept = []
    for task in results.tasks:
        found = line(results, results.base, of_task(task)).score
        if found is not None and found.value >= ABLE:
            kept.append(task)
    return tuple(kept)


def summarise(results: Results) -> dict[str, Any]:
    """Everything as JSON: over all tasks, over those that the baseline can do, by task, and by task and length."""
    able = able_tasks(results)
    names = [arm.name for arm in results.arms]
    lengths = sorted({(sample.task, sample.length) for sample in results.samples.values()})

    def table(keep: Callable[[Sample], bool]) -> dict[str, Any]:
        return {name: line(results, name, keep).as_dict() for name in names}

    return {
        "schema": "lychee-sgl/eval-summary",
        "version": 1,
        "baseline": results.base,
        "arms": [arm.model_dump(mode="json", exclude_defaults=True) for arm in results.arms],
        "runs": [{"facts": run["facts"], "identity": run["identity"]} for run in results.runs],
        "able": list(able),
        "all": table(lambda sample: True),
        "over_able": table(lambda sample: sample.task in able),
        "tasks": {task: table(of_task(task)) for task in results.tasks},
        "cells": {f"{task}/{length}": table(of_task(task, length)) for task, length in lengths},
        "asked_differently": asked_differently(results),
        "without_answers": {
            name: tasks for name in names if (tasks := [t for t in results.tasks if not _answered(results, name, t)])
        },
        "missing": sum((key, name) not in results.records for key in results.samples for name in names),
        "error_messages": _messages(results),
    }


def _answered(results: Results, arm: str, task: str) -> bool:
    return any(record.error is None for record in results.of(arm, of_task(task)))


def asked_differently(results: Results) -> list[str]:
    """What runs that stand side by side did not have in common although it bears on their replies, in words."""
    found = []
    for field in ("api", "prefix", "temperature", "body", "warm_up"):
        values = [run["identity"]["settings"][field] for run in results.runs]
        if any(value != values[0] for value in values):
            found.append(f"{field} is {', '.join(json.dumps(value) for value in values)}")
    return found


def _messages(results: Results) -> dict[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for record in results.records.values():
        if record.error is not None:
            counts[record.error[:200]] += 1
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:10])
