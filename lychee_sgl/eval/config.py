"""What a run asks, read from a YAML file."""

from __future__ import annotations

import itertools
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lychee_sgl.eval.errors import EvalError

if TYPE_CHECKING:
    from collections.abc import Sequence

Scalar = str | int | float | bool


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(_Strict):
    """One task of a run.

    Attributes:
        name: as `lychee-sgl eval tasks` lists them.
        lengths: tokens of prompt and answer; default: the run's.
        samples: of each length, or of a file (the first ones); default: the run's.
        file: a user's file, relative to the configuration.
        depths: of the needle grid: how many places.
        max_tokens: longest answer of a file's task; default: the benchmark's own.
    """

    name: str
    lengths: tuple[int, ...] | None = None
    samples: int | None = Field(default=None, ge=1)
    file: Path | None = None
    depths: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)


class Arm(_Strict):
    """One way to ask every sample.

    Attributes:
        name: in tables.
        lychee: fields of the request's object `lychee`, e.g. `{budget: 512}`; sent as `custom_params` to an engine
            without gateway when the run says so.
        custom_params: sent as they are.
        body: further fields of the request.
        at: the budget, as a share of the context, at which it is compared with others in plots; default: the `value`
            of the mode `ratio`. For a policy that reads other things beside its sets, so that the same share would
            not be the same bytes.
        plan: name of the head plan that the server has to have for this arm; default: any. A plan goes by the engine
            and not by the request: asked of another engine, the arm would bear a wrong name.
    """

    name: str
    lychee: dict[str, Scalar] | None = None
    custom_params: dict[str, Scalar] | None = None
    body: dict[str, Any] = {}
    at: float | None = Field(default=None, gt=0, le=1)
    # left out where it is not used: a run's identity, and a figure, from before there was this field stay what they are
    plan: str | None = Field(default=None, exclude_if=lambda plan: plan is None)

    def fields(self, send_as: Literal["lychee", "custom_params"]) -> dict[str, Any]:
        """Fields of the request."""
        found = dict(self.body)
        custom = dict(self.custom_params or {})
        if self.lychee is not None and send_as == "lychee":
            found["lychee"] = dict(self.lychee)
        elif self.lychee is not None:
            custom |= {f"lychee_{name}": value for name, value in self.lychee.items()}
        if custom:
            found["custom_params"] = custom
        return found

    @property
    def policy(self) -> str:
        """The line it belongs to in plots: what its name has without its budget."""
        asked = self.lychee or {}
        if asked.get("budget") == "dense":
            return "dense"
        return str(asked.get("policy", self.name.rpartition(" ")[0] or self.name))

    @property
    def share(self) -> float | None:
        """The budget as a share of the context, where it is one."""
        if self.at is not None:
            return self.at
        asked = self.lychee or {}
        return float(asked["value"]) if asked.get("mode") == "ratio" and "value" in asked else None


class Settings(_Strict):
    """A whole run.

    Attributes:
        seed: every sample follows from it.
        samples: of each task and length.
        lengths: tokens of prompt and answer.
        tasks: what is asked.
        arms: in which ways; asked in this order.
        baseline: the arm that distances are taken from; default: `dense`, else the first.
        haystack: `python`, `reference`, or a text file or folder, relative to the configuration.
        api: chat or plain completions.
        prefix: what happens to the words an answer begins with: the server continues them (SGLang and vLLM can; with
            plain completions it is what happens anyway), or they stand behind the prompt, or are left out.
        temperature: 0 is greedy.
        body: further fields of every request.
        warm_up: ask for one token first, so that no arm pays for the prefill.
    """

    seed: int = 1
    samples: int = Field(default=25, ge=1)
    lengths: tuple[int, ...] = (4096,)
    tasks: tuple[Task, ...] = Field(min_length=1)
    arms: tuple[Arm, ...] = Field(min_length=1)
    baseline: str = ""
    haystack: str = "python"
    api: Literal["chat", "completions"] = "chat"
    prefix: Literal["continue", "user", "none"] = "continue"
    temperature: float = Field(default=0.0, ge=0)
    body: dict[str, Any] = {}
    warm_up: bool = True

    @field_validator("tasks", mode="before")
    @classmethod
    def _short_tasks(cls, value: Any) -> Any:
        return [{"name": task} if isinstance(task, str) else task for task in value] if _listed(value) else value

    @field_validator("arms", mode="before")
    @classmethod
    def _grids(cls, value: Any) -> Any:
        return [arm for entry in value for arm in expand(entry)] if _listed(value) else value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        for what, names in (("arms", [arm.name for arm in self.arms]), ("tasks", [task.name for task in self.tasks])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} has {twice[0]!r} twice; allowed: every name once")
        if self.baseline and self.baseline not in [arm.name for arm in self.arms]:
            raise ValueError(f"baseline is {self.baseline!r}; allowed: {', '.join(arm.name for arm in self.arms)}")
        for lengths in (self.lengths, *(task.lengths or () for task in self.tasks)):
            if len({*lengths}) < len(lengths):
                raise ValueError(f"lengths is {list(lengths)}; allowed: every length once")
        every = [*self.lengths, *(length for task in self.tasks for length in task.lengths or ())]
        if any(length < 64 for length in every) or not self.lengths:
            raise ValueError(f"lengths has {min(every, default='none')}; allowed: from 64 on")
        return self

    @property
    def base(self) -> Arm:
        """The baseline."""
        names = {arm.name: arm for arm in self.arms}
        return names.get(self.baseline) or names.get("dense") or self.arms[0]


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)


def expand(entry: Any) -> list[Any]:
    """Arms of an entry with a `grid`: one for every combination; another entry as it is.

    `{name: "{policy} {value}", lychee: {mode: ratio}, grid: {policy: [ours, quest], value: [0.125, 0.25]}}` makes four.
    """
    if not isinstance(entry, dict) or "grid" not in entry:
        return [entry]
    grid = entry["grid"]
    if not isinstance(grid, dict) or not all(_listed(values) for values in grid.values()):
        raise ValueError("arms.grid: allowed are names with lists of values")
    rest = {key: value for key, value in entry.items() if key != "grid"}
    arms = []
    for combination in itertools.product(*grid.values()):
        chosen = dict(zip(grid, combination, strict=True))
        try:
            name = str(rest.get("name", " ".join(f"{{{key}}}" for key in grid))).format(**chosen)
        except (KeyError, IndexError) as error:
            raise ValueError(f"arms.name is {rest['name']!r}; allowed names in it: {', '.join(grid)}") from error
        arms.append({**rest, "name": name, "lychee": {**(rest.get("lychee") or {}), **chosen}})
    return arms


def read_settings(path: Path) -> Settings:
    """Read a configuration; paths in it become relative to where it lies.

    Raises:
        EvalError: it cannot be read, or a field is wrong.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise EvalError(f"{path}: {error}") from error
    settings = parse_settings(values, str(path))
    here = path.parent
    tasks = tuple(task.model_copy(update={"file": task.file and here / task.file}) for task in settings.tasks)
    return settings.model_copy(update={"tasks": tasks, "haystack": _located(settings.haystack, here)})


def _located(haystack: str, here: Path) -> str:
    from lychee_sgl.eval.text import BUILT_IN

    return haystack if haystack in BUILT_IN else str(here / haystack)


def parse_settings(values: Any, where: str) -> Settings:
    """Check a configuration's values.

    Raises:
        EvalError: a field is wrong; it, its value and what is allowed are named.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        given = f" is {first['input']!r}" if place and not isinstance(first["input"], dict | list) else ""
        raise EvalError(f"{where}: {place}{given}: {first['msg'].removeprefix('Value error, ')}") from error


def narrowed(
    settings: Settings, *, tasks: Sequence[str] = (), arms: Sequence[str] = (), samples: int | None = None
) -> Settings:
    """A part of a run, as the command line asks for it.

    Raises:
        EvalError: there is no such task or arm.
    """
    kept: dict[str, Any] = {}
    for what, wanted in (("tasks", tasks), ("arms", arms)):
        there = {entry.name: entry for entry in getattr(settings, what)}
        for name in wanted:
            if name not in there:
                raise EvalError(f"--{what[:-1]} is {name!r}; allowed: {', '.join(there)}")
        if wanted:
            kept[what] = tuple(entry for name, entry in there.items() if name in wanted)
    if samples is not None:
        kept["samples"] = samples
        chosen = kept.get("tasks", settings.tasks)
        kept["tasks"] = tuple(task.model_copy(update={"samples": None}) for task in chosen)
    left = {arm.name for arm in kept.get("arms", settings.arms)}
    return settings.model_copy(update={**kept, "baseline": settings.baseline if settings.baseline in left else ""})
