"""The room's README against the code, and the configurations in docs/eval."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lychee_sgl.eval.config import Arm, Settings, Task, read_settings
from lychee_sgl.eval.report import task_table
from lychee_sgl.eval.ruler import COMMIT
from lychee_sgl.eval.run import identity_of
from lychee_sgl.eval.tasks import catalogue

ROOT = Path(__file__).parents[2]
README = (ROOT / "lychee_sgl" / "eval" / "README.md").read_text(encoding="utf-8")


def test_the_table_of_tasks_is_the_catalogue() -> None:
    assert README.split("<!-- tasks: start -->\n")[1].split("<!-- tasks: end -->")[0] == task_table(catalogue())


def test_the_table_of_fields_is_the_configuration() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| ?(.*?) ?\| ?(.*?) ?\|$", README.split("## Configuration")[1].split("\n## ")[0], re.MULTILINE
    )
    assert [name for name, _, _ in rows] == list(Settings.model_fields)
    told = {name: default for name, default, _ in rows}
    for name in ("seed", "samples", "haystack", "api", "prefix"):
        assert told[name].strip("`") == str(Settings.model_fields[name].default)
    said = {name: set(re.findall(r"\w+", re.findall(r"`\{(.+?)\}`", text)[0])) for name, _, text in rows if "{" in text}
    assert said["tasks"] == set(Task.model_fields)
    assert said["arms"] == set(Arm.model_fields)


def test_the_gates_figure_is_of_the_gates_configuration() -> None:
    """A field more would make them differ, which the gate itself finds only after it has asked an engine."""
    figure = json.loads((ROOT / "docs" / "measurements" / "eval-gate.json").read_text(encoding="utf-8"))
    settings = read_settings(ROOT / "docs" / "eval" / "gate.yaml")
    assert identity_of(settings, "a model", {})["settings"] == figure["settings"]


def test_the_definition_that_was_read_is_named() -> None:
    assert f"NVIDIA/RULER at commit `{COMMIT}`" in README


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m-plans", "gate"])
def test_committed_configurations_can_be_read(name: str) -> None:
    settings = read_settings(ROOT / "docs" / "eval" / f"{name}.yaml")
    known = {entry.name for entry in catalogue()}
    assert {task.name for task in settings.tasks} <= known
    assert all(arm.share is not None for arm in settings.arms if arm.policy != "dense")


def test_budgets_of_the_full_table_are_the_same_bytes() -> None:
    """Of KV entries, for the plan of the embedded model: 18 of 90 heads retrieve; Quest has 2 dense layers of 30."""
    read = {
        "plan": lambda v: 0.2 + 0.8 * v,
        "block": lambda v: 0.2 + 0.8 * v,
        "window": lambda v: v,
        "random": lambda v: v,
        "oracle": lambda v: v,
        "quest": lambda v: 2 / 30 + 28 / 30 * (v + 1 / 16),
    }
    found: dict[float, list[float]] = {}
    for arm in read_settings(ROOT / "docs" / "eval" / "smollm2-135m.yaml").arms:
        if arm.at is not None and arm.lychee is not None:
            found.setdefault(arm.at, []).append(read[arm.name.split()[0]](float(arm.lychee["value"])))
    assert {at: len(shares) for at, shares in found.items()} == {1 / 16: 6, 1 / 8: 6, 1 / 4: 6}
    for shares in found.values():
        assert max(shares) - min(shares) < 1e-3


def test_runs_of_both_full_configurations_stand_side_by_side() -> None:
    one, other = (
        read_settings(ROOT / "docs" / "eval" / f"{name}.yaml") for name in ("smollm2-135m", "smollm2-135m-plans")
    )
    assert one.model_copy(update={"arms": other.arms}) == other
    assert not {arm.name for arm in one.arms} & {arm.name for arm in other.arms}
