"""The tables of several GPUs and of replicas, from records by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"
ORIGIN = {
    "date": "2030-01-02",
    "command": "lychee-sgl bench",
    "machine": {"cpu": "A CPU", "cores": 2, "load_before": [0.25, 1, 1]},
    "versions": {"sglang": "1", "torch": "2"},
}


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        return importlib.import_module("tables")


def rank(attention: float, reduce: float) -> dict[str, Any]:
    groups = {"all-reduce": reduce, "attention": attention, "selection": 0.25, "matrices": 3.0, "other": 0.5}
    return {"steps": 9, "span_ms": 5.0, "busy_ms": 4.0, "groups_ms": groups}


def batch(dense: float, sparse: float, profile: Any = None) -> dict[str, Any]:
    line = {"dense": {"median_ms": dense}, "sparse": {"median_ms": sparse}, "speedup": dense / sparse}
    return line | {"attended_fraction": 0.15} | ({"profile": profile} if profile else {})


def test_several_gpus(tables: ModuleType) -> None:
    told = {"answers": 12, "identical": 10, "near_ties": 2, "noise": 0.05}
    profile = {"dense": [rank(4, 0.5), rank(4, 0.5)], "sparse": [rank(1, 0.5), rank(1.5, 0.25)]}
    record = ORIGIN | {
        "device": "4 x A GPU", "tp": 2, "model": "llama", "retrieval_heads": 32, "budget": 4096,
        "lychee": {"placement": "balanced", "batches": {"131072x4": batch(12, 5, profile), "65536x8": batch(11, 5)}},
        "lychee_unbalanced": {"placement": "unbalanced", "batches": {"131072x4": batch(12, 6)}},
        "flashinfer": {"batches": {"131072x4": {"dense": {"median_ms": 11.9}}}},
        "kept": {"lychee": {"131072x4": 0.97}},
        "tokens": {
            "prompts": 12, "tp": 2, "flashinfer": told, "lychee": {"dense": told, "512": told},
            "lychee_dense_beside_flashinfer": told,
        },
    }  # fmt: skip
    text = tables.gpu_ranks(record, "gpu-tp2.json")
    assert "| 131,072 x 4 | 11.90 ms | 5.00 ms | **2.40x** | 0.97 | 6.00 ms | 15.0% |" in text
    assert "| 65,536 x 8 | 11.00 ms | 5.00 ms | **2.20x** | - | - | 15.0% |" in text
    assert "| 131,072 x 4 | dense | 4.00 / 4.00 | 0.25 | 3.00 | 0.50 | 0.50 |" in text
    assert "| 131,072 x 4 | balanced | 1.00 / 1.50 | 0.25 | 3.00 | 0.38 | 0.50 |" in text
    assert "stock SGLang (flashinfer) 10 of 12 identical, 2 from a near tie on; dense 10 of 12" in text
    assert "below 0.050" in text
    # without its later parts it is a table all the same
    bare = {key: record[key] for key in record if key not in ("tokens", "kept", "lychee_unbalanced", "flashinfer")}
    assert "**2.40x** | - | - |" in tables.gpu_ranks(bare, "gpu-tp2.json")


def test_replicas(tables: ModuleType) -> None:
    processes = [
        {"received": 300, "ended": 290, "died_with": 10, "requests": [280, 285, 300]},
        {"received": 400, "ended": 400, "requests": [401, 401, 401]},
        {"received": 900, "ended": 890, "requests": [891, 895, 900]},
    ]
    record = ORIGIN | {
        "requests": 1600, "engines": 2, "model": "tiny", "at_once": 24, "chats": 1000, "streams": 900,
        "prompt_tokens": {"sum": 1, "longest": 1500}, "open_at_the_kill": {"streams": 7, "whole_answers": 3},
        "killed": {"in_the_router_seconds": 61.4}, "slowest_seconds": 12.3, "processes": processes, "problems": [],
        "clients_saw": {"answered": 1500, "error": 7, "left": 60, "refused": 33},
        "answers": {
            "began_with_their_number": 1490, "asked_again_alone": 70, "as_alone": 68, "near_ties": {"1": 0.01, "2": 0},
            "parted_with_their_number": {"533": "8124228"}, "others": {},
        },
    }  # fmt: skip
    text = tables.router_engines(record, "router-engines.json")
    assert "| the killed engine | 300 | 290 | 10 | 285 (280 to 300) |" in text
    assert "| the same, started again | 400 | 400 | - | 401 |" in text
    assert "1,500 were answered, 7 streams ended in an error, 60 clients left, 33 were refused, 0 hung" in text
    assert "1,490 answers began with the four digits that only their request had; 68 of 70 answers" in text
    assert "2 from a near tie on, 1 with their number but further from it than stock SGLang is from itself" in text
    assert "0 could not be told to be their own. Beside these, 0 differences" in text
