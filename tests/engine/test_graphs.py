"""Two graphs for every batch size, and statistics that arrive from a device."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from lychee_kernels.decode_plan.api import DENSE, Fallback, Param
from lychee_sgl.backend import hooks
from lychee_sgl.backend.correction import Schedule
from lychee_sgl.backend.hybrid import HybridHeads
from lychee_sgl.backend.results import DenseSteps, DeviceSteps
from lychee_sgl.backend.rows import RowTable
from lychee_sgl.backend.summary import Step
from lychee_sgl.heads.plan import PlanDefaults


class Backend:
    """Stands in for the GPU backend, of which the hooks need three attributes."""

    graph_variants = ("dense", "sparse")

    def __init__(self) -> None:
        self.variant = self.variant_to_capture = "dense"


def test_every_batch_size_is_captured_once_a_variant() -> None:
    backend, captured = Backend(), []

    def capture(runner: object, size: int, *, forward: str) -> None:
        captured.append((size, forward, backend.variant_to_capture))

    runner = SimpleNamespace(model_runner=SimpleNamespace(lychee=backend))
    hooks.around_capture(capture, runner, 4, forward="model")
    assert captured == [(4, "model", "dense"), (4, "model", "sparse")]
    hooks.around_capture(capture, SimpleNamespace(model_runner=SimpleNamespace()), 8, forward="other")
    assert captured[2:] == [(8, "other", "sparse")]


def test_graphs_of_the_variants_have_their_own_keys() -> None:
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Key:
        size: int
        variant_label: str | None = None

    backend = Backend()
    runner = SimpleNamespace(model_runner=SimpleNamespace(lychee=backend))
    keys = []
    for variant in backend.graph_variants:
        backend.variant = variant
        keys.append(hooks.around_graph_key(lambda _, size: Key(size), runner, 4))
    assert keys == [Key(4, "lychee_dense"), Key(4, "lychee_sparse")]
    lora = hooks.around_graph_key(lambda _, size: Key(size, "lora"), runner, 4)
    assert lora == Key(4, "lora_lychee_sparse")
    other = SimpleNamespace(model_runner=SimpleNamespace())
    assert hooks.around_graph_key(lambda _, size: Key(size), other, 4) == Key(4)


def test_a_devices_report_reads_as_steps() -> None:
    rows = [[700.0, 0.75, 0, 100, 1000], [4000.0, math.nan, 1, 100, 1000]]
    steps = DeviceSteps(torch.tensor(rows, dtype=torch.float64).T, heads=4, sparse=[True, False])
    assert steps.sparse == [True, False]
    assert Step(*steps[0]) == Step(700, 4000, Fallback.NONE, 100, 1000, 0.75, 2)
    assert Step(*steps[1]) == Step(4000, 4000, Fallback.DENSE_BELOW, 100, 1000, None, 2)


def test_a_dense_step_needs_no_device() -> None:
    steps = DenseSteps([10, 20], [DENSE, 5], [int(Fallback.NONE), int(Fallback.DENSE_BELOW)], heads=3)
    assert steps.sparse == [False, False]
    assert Step(*steps[0]) == Step(30, 30, 0, DENSE, 10, None, 2)
    assert Step(*steps[1]) == Step(60, 60, 1, 5, 20, None, 2)


class Result(NamedTuple):
    logits_output: object


def test_only_a_devices_statistics_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(DeviceSteps, "start_copy", lambda self: started.append(self))
    steps = DeviceSteps(torch.zeros(5, 1, dtype=torch.float64), heads=4, sparse=[True])
    for info in (None, {}, {"lychee": [None]}, {"lychee": DenseSteps([1], [1], [0], heads=1)}):
        hooks.before_copy(Result(SimpleNamespace(customized_info=info)))
    hooks.before_copy(Result(None))
    assert started == []
    hooks.before_copy(Result(SimpleNamespace(customized_info={"lychee": steps})))
    assert started == [steps]


def test_a_request_for_one_token_runs_dense_and_others_as_asked() -> None:
    backend = HybridHeads()
    backend.context_window = 8192
    backend.plan = SimpleNamespace(defaults=PlanDefaults(budget=512))
    backend.table, backend.schedule = RowTable(4, "cpu"), Schedule(4)

    def request(slot: int, tokens: int | None) -> SimpleNamespace:
        params = SimpleNamespace(custom_params={"lychee_budget": 100}, max_new_tokens=tokens)
        return SimpleNamespace(sampling_params=params, origin_input_ids=[1] * 30, req_pool_idx=slot)

    # 0: what SGLang sends ahead of several choices, so that their prompt is in the cache
    backend.admit([request(1, 1), request(2, 2), request(3, None), request(4, 0)], [30] * 4)
    assert backend.table.params[1:5, Param.BUDGET].tolist() == [DENSE, 100, 100, DENSE]
    assert backend.table.params[1:5, Param.PROMPT].tolist() == [30] * 4
