"""The regression gate: quality at fixed budgets, on the engine of these tests, against the committed figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lychee_sgl.eval.config import read_settings
from lychee_sgl.eval.gate import failures, read_figure
from lychee_sgl.eval.run import Target, run
from lychee_sgl.eval.summary import load

if TYPE_CHECKING:
    from lychee_sgl.eval.store import Record
    from tests.e2e.deployment import Deployment

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
FIGURE = ROOT / "docs" / "measurements" / "eval-gate.json"


class Silent:
    """Nobody watches."""

    def stage(self, text: str, total: int | None = None) -> None: ...

    def advance(self, record: Record | None = None) -> None: ...


def test_quality_is_not_below_the_committed_figure(deployment: Deployment, tmp_path: Path) -> None:
    settings = read_settings(ROOT / "docs" / "eval" / "gate.yaml")
    target = Target(url=deployment.url, tokenizer=deployment.engine_url)
    outcome = run(settings, target, tmp_path, Silent(), {})
    assert outcome.errors == 0
    assert failures(load([tmp_path]), read_figure(FIGURE)) == []
