"""Who imports whom (DESIGN.md section 1), and what importing costs."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("numba", "numpy", "sglang", "torch", "transformers", "triton")
LINTER = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    roots = [str(folder), str(folder / "kernels"), str(folder / "server")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    return subprocess.run(
        [str(LINTER), "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_import_rules_are_kept(root: Path) -> None:
    answer = lint(root)
    assert answer.returncode == 0, answer.stdout
    assert " 0 broken" in answer.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("server/lychee_server/settings.py", "import lychee_sgl.heads.plan", "The gateway speaks HTTP"),
        ("lychee_sgl/doctor.py", "import torch", "The launcher starts in milliseconds"),
        ("lychee_sgl/heads/plan.py", "import pydantic", "Head plans need the standard library only"),
        ("kernels/lychee_kernels/layout.py", "import sglang", "Kernels stand alone"),
    ],
)
def test_a_planted_violation_is_caught(root: Path, tmp_path: Path, file: str, line: str, contract: str) -> None:
    for name in ("lychee_sgl", "kernels", "server"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    planted = tmp_path / file
    planted.write_text(planted.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    answer = lint(tmp_path)
    assert answer.returncode == 1
    broken = [found for found in answer.stdout.splitlines() if found.endswith("BROKEN")]
    assert [found for found in broken if found.startswith(contract)]


@pytest.mark.parametrize(
    "module", ["lychee_sgl", "lychee_sgl.cli", "lychee_sgl.doctor", "lychee_sgl.heads.plan", "lychee_sgl.serve.launch"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert loaded(module) & set(HEAVY) == set()


def test_importing_the_gateway_loads_nothing_heavy_and_nothing_of_ours() -> None:
    ours = {"lychee_sgl", "lychee_kernels"}
    assert loaded("lychee_server.__main__") & (set(HEAVY) | ours) == set()


def loaded(module: str) -> set[str]:
    """Top-level packages in memory after an import in a fresh interpreter."""
    script = f"import json, sys, {module}; print(json.dumps([*{{name.split('.')[0] for name in sys.modules}}]))"
    answer = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    found = set(json.loads(answer.stdout))
    assert module.split(".")[0] in found
    return found


def test_head_plans_need_the_standard_library_only(sources: dict[str, str]) -> None:
    tree = ast.parse(sources["lychee_sgl/heads/plan.py"])
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign <= {"lychee_sgl.heads", "lychee_sgl.heads.checks"}
    assert "json" in imported


def test_source_roots_are_not_packages(root: Path, texts: dict[str, str]) -> None:
    """Hugging Face's `kernels`, which SGLang needs, must not be shadowed."""
    assert not [name for name in texts if name in ("kernels/__init__.py", "server/__init__.py")]
    assert not [name for name in texts if name.startswith("tests/") and name.endswith("__init__.py")]
    found = importlib.util.find_spec("kernels")
    assert found is None or found.origin is None or not Path(found.origin).is_relative_to(root / "kernels")
