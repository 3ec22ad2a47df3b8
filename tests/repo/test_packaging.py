"""What is pinned, what is registered, and what a wheel holds."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

PINNED = re.compile(r"^[a-z0-9][a-z0-9._-]*==[A-Za-z0-9.+!_-]+(?: ; .+)?$")


@pytest.mark.parametrize(
    ("file", "pins"),
    [
        ("constraints.txt", ["sglang==0.5.17", "torch==2.11.0", "triton==3.6.0"]),
        ("constraints-next.txt", ["sglang==0.5.23", "torch==2.14.1", "triton==3.8.0"]),
    ],
)
def test_constraints_are_plain_pins(texts: dict[str, str], file: str, pins: list[str]) -> None:
    lines = texts[file].splitlines()
    assert [line for line in lines if not PINNED.match(line)] == []
    assert set(pins) <= set(lines)
    # llama.cpp would be compiled for minutes, and nothing of ours runs it
    assert not [line for line in lines if line.startswith("llama-cpp-python")]


def test_constraints_pin_what_the_project_asks_for(texts: dict[str, str]) -> None:
    project = tomllib.loads(texts["pyproject.toml"])
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *(name for extra in extras for name in extra)]
    wanted += project["dependency-groups"]["dev"]
    names = {re.split(r"[\[<>=~! ]", name)[0].lower() for name in wanted}
    pinned = {line.split("==")[0] for line in texts["constraints.txt"].splitlines()}
    assert names - pinned == set()


def test_every_entry_point_resolves(texts: dict[str, str]) -> None:
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    for group, declared in groups.items():
        installed = {point.name: point.value for point in entry_points(group=group)}
        for name, value in declared.items():
            assert installed.get(name) == value, f"{group}: {name} is not installed as declared"
            module, attribute = value.split(":")
            assert callable(getattr(importlib.import_module(module), attribute))


def test_wheel_holds_the_packages_and_nothing_else(root: Path, tmp_path: Path, texts: dict[str, str]) -> None:
    build = [sys.executable, "-P", "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    answer = subprocess.run(build, cwd=root, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert answer.returncode == 0, answer.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        notes = {name.split(".dist-info/", 1)[1] for name in archive.namelist() if ".dist-info/" in name}
    roots = {"lychee_sgl/": "", "kernels/lychee_kernels/": "kernels/", "server/lychee_server/": "server/"}
    expected = {name.removeprefix(above) for start, above in roots.items() for name in texts if name.startswith(start)}
    assert held == expected
    page = ("lychee_server/page/index.html", "lychee_server/page/main.js", "lychee_server/page/base.css")
    for name in ("lychee_sgl/py.typed", "lychee_kernels/py.typed", "lychee_server/py.typed", *page):
        assert name in held
    assert [name for name in held if name.startswith("lychee_sgl/heads/plans/") and name.endswith(".json")]
    assert {"licenses/LICENSE", "entry_points.txt"} <= notes
