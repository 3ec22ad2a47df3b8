"""What an ablation makes and asks, read from a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from lychee_sgl.heads.ablate.names import at_count
from lychee_sgl.heads.evaluate.run import ExamSettings
from lychee_sgl.heads.train.run import DataSettings
from lychee_sgl.heads.train.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RIVALS = (
    "random", "even", "layerwise", "random-measured", "even-measured", "layerwise-measured",
    "cover-mass", "cover-output", "cover-effect", "heuristic", "heuristic-measured",
)  # fmt: skip
"""Plans that are not trained. The heuristic has half of the heads whatever is asked for."""

TRAIN_KEYS = (
    "retrieval", "budget", "sinks", "recent", "gate", "sources", "objective", "chain", "steps", "draws", "rate", "ramp",
    "seed", "recompute",
)  # fmt: skip
"""What a configuration may say of a training: what the command `train` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """A whole ablation.

    Attributes:
        retrieval: retrieval heads of all plans, but for the curves.
        counts: retrieval heads of the curves' plans.
        budgets: under which every plan answers.
        curve_budgets: under which the curves' plans answer.
        train: what all trainings share.
        runs: trainings by name, with what differs.
        rivals: of `RIVALS`.
        curve_runs: trainings that are done again at every count.
        curve_rivals: rivals that are made again at every count.
        plans: further plans by name: plan files, relative to the configuration.
        data: what trainings and gains see; its seed is the gains', a training draws its samples by its own.
        gain_samples: samples on which gains are measured.
        exam: the questions.
        exam_haystack: text file or folder for the questions; None: the half of Python's documentation that no training
            sees.
        workers: trainings at a time on each GPU (on a CPU: in all); bound by launches, so a GPU carries several.
    """

    retrieval: int
    counts: tuple[int, ...] = ()
    budgets: tuple[int, ...] = (256, 512, 1024)
    curve_budgets: tuple[int, ...] = (512,)
    train: TrainSettings
    runs: Mapping[str, TrainSettings] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()
    curve_runs: tuple[str, ...] = ()
    curve_rivals: tuple[str, ...] = ()
    plans: Mapping[str, Path] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    gain_samples: int = 16
    exam: ExamSettings = field(default_factory=ExamSettings)
    exam_haystack: Path | None = None
    workers: int = 1

    def trainings(self) -> dict[str, TrainSettings]:
        """All trainings, the curves' included, by the name of their plan."""
        jobs = dict(self.runs)
        for name in self.curve_runs:
            for count in self.counts:
                if count != self.runs[name].retrieval:
                    jobs[at_count(name, count)] = replace(self.runs[name], retrieval=count)
        return jobs


def read_ablation(path: Path) -> Ablation:
    """Read a configuration.

    Raises:
        ValueError: it is not YAML, or a key or value does not do; the message names it.
        OSError: it cannot be read.
    """
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} holds {given!r:.60}; allowed: a mapping")
    try:
        return _ablation(given, path.parent)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _ablation(given: dict[str, Any], folder: Path) -> Ablation:
    _known("", given, [item.name for item in fields(Ablation)])
    for key in ("retrieval", "train"):
        if key not in given:
            raise ValueError(f"{key} is missing")
    common = _mapping("train", given["train"])
    _known("train", common, list(TRAIN_KEYS))
    shared = _made(TrainSettings, "train", {"retrieval": given["retrieval"], **common})
    runs = {}
    for name, more in _mapping("runs", given.get("runs", {})).items():
        changed = _mapping(f"runs.{name}", more or {})
        _known(f"runs.{name}", changed, list(TRAIN_KEYS))
        runs[name] = replace(shared, **changed)
    for key in ("rivals", "curve_rivals"):
        for name in given.get(key, []):
            if name not in RIVALS:
                raise ValueError(f"{key} holds {name!r}; allowed: {', '.join(RIVALS)}")
    for name in given.get("curve_runs", []):
        if name not in runs:
            raise ValueError(f"curve_runs holds {name!r}; allowed: {', '.join(runs) or 'nothing: there are no runs'}")
    data = dict(_mapping("data", given.get("data", {})))
    if "haystack" in data:
        data["haystack"] = folder / data["haystack"]
    if data.get("source", "passkey") != "passkey":
        data["source"] = str(folder / data["source"])
    plans = {name: folder / file for name, file in _mapping("plans", given.get("plans", {})).items()}
    clash = {*runs} & {*plans} | ({*runs} | {*plans}) & {*given.get("rivals", [])}
    if clash:
        raise ValueError(f"{', '.join(sorted(clash))} names two plans; allowed: one of runs, rivals and plans")
    told: dict[str, Any] = {}
    for key in ("retrieval", "gain_samples", "workers"):
        if key in given:
            told[key] = _whole(key, given[key])
    for key in ("counts", "budgets", "curve_budgets"):
        if key in given:
            told[key] = tuple(_whole(key, value) for value in given[key])
    if "exam_haystack" in given:
        told["exam_haystack"] = folder / given["exam_haystack"]
    for key in ("rivals", "curve_runs", "curve_rivals"):
        told[key] = tuple(given.get(key, ()))
    return Ablation(
        **told, train=shared, runs=runs, plans=plans,
        data=_made(DataSettings, "data", data),
        exam=_made(ExamSettings, "exam", _mapping("exam", given.get("exam", {}))),
    )  # fmt: skip


def _made(kind: type[Any], where: str, given: Mapping[str, Any]) -> Any:
    """A dataclass from a mapping; lists become tuples."""
    _known(where, given, [item.name for item in fields(kind)])
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})


def _known(where: str, given: Mapping[str, Any], names: list[str]) -> None:
    for key in given:
        if key not in names:
            raise ValueError(f"{where}{'.' if where else ''}{key} is not a key; known: {', '.join(names)}")


def _mapping(where: str, given: object) -> Mapping[str, Any]:
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ValueError(f"{where} is {given!r:.60}; allowed: a mapping")
    return given


def _whole(key: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} is {value!r}; allowed: a whole number above 0")
    return value
