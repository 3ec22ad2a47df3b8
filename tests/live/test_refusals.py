"""An engine that cannot keep its promise does not start, and says why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.plan import ModelShape
from lychee_sgl.serve.solo import solo_engine
from lychee_sgl.serve.supervisor import StartFailed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine

BROKEN_HOOK = """
import lychee_sgl.backend.hooks as hooks

known = hooks._scheduler_hooks
hooks._scheduler_hooks = lambda: [*known(), hooks.Hook("sglang.srt.model_executor.gone.away", print, "after")]
"""


def test_a_hook_that_cannot_be_applied(tmp_path: Path) -> None:
    """SGLang itself logs it and goes on; here a later SGLang is simulated that has lost one of our places."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN_HOOK)
    with (
        pytest.raises(StartFailed, match=r"hooks that could not be applied .*sglang\.srt\.model_executor\.gone\.away"),
        solo_engine(tmp_path, environ={"PYTHONPATH": str(tmp_path)}),
    ):
        pass


def test_a_masked_plugin(tmp_path: Path) -> None:
    with (
        pytest.raises(StartFailed, match=r"invalid choice: 'lychee'"),
        solo_engine(tmp_path, environ={"SGLANG_PLUGINS": "lychee_cpu"}),
    ):
        pass


def test_a_plan_for_another_model(tmp_path: Path) -> None:
    shape = ModelShape("other", "LlamaForCausalLM", 2, 4, 2, 64)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(heuristic_plan(shape).to_dict()))
    with (
        pytest.raises(StartFailed, match=r"other \(LlamaForCausalLM: 2 layers, .*30 layers"),
        solo_engine(tmp_path, environ={"LYCHEE_HEADS": str(plan)}),
    ):
        pass


def test_mixed_chunks(tmp_path: Path) -> None:
    with (
        pytest.raises(StartFailed, match=r"does not serve --enable-mixed-chunk"),
        solo_engine(tmp_path, engine_args=("--enable-mixed-chunk",)),
    ):
        pass
