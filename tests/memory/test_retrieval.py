"""Retrieval leaves a GPU to the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from lychee_sgl.memory.retrieval import rank

if TYPE_CHECKING:
    from pathlib import Path


def test_the_best_text_comes_first() -> None:
    texts = ["the key is in Oslo", "a horse", "Oslo has the silver key"]
    assert rank(texts, "Where is the silver key?", 2) == [2, 0]


def test_no_gpu_is_touched_where_jax_is_installed(tmp_path: Path) -> None:
    """A jax that says when it is imported stands in for the real one, which would take the GPU's memory."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('jax was started')\n")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(scores, k): return scores, k\n")
    said = subprocess.run(
        [sys.executable, "-c", "from lychee_sgl.memory.retrieval import rank; print(rank(['a b', 'c'], 'c', 1))"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "[1]\n"
