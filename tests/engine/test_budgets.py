"""From `custom_params` to row tables: what is refused, what is filled in, how each row of a step is decided."""

import math
import random

import pytest
import torch

from lychee_kernels.decode_plan.api import Fallback
from lychee_kernels.layout import Mode
from lychee_sgl.backend.request import DENSE, BudgetRequest, RowSpec, resolve
from lychee_sgl.backend.rows import RowTable
from lychee_sgl.heads.plan import AutoBudget, PlanDefaults

DEFAULTS = PlanDefaults(budget=1024, sinks=64, recent=256, auto=AutoBudget(fraction=0.125, min=512, max=4096))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lychee_budget": 0}, "lychee_budget is 0, allowed: a whole number from 1 to 8192, 'dense' or 'auto'"),
        ({"lychee_budget": -5}, "lychee_budget is -5"),
        ({"lychee_budget": 8193}, "lychee_budget is 8193"),
        ({"lychee_budget": 1e9}, "lychee_budget is 1000000000.0"),
        ({"lychee_budget": 12.0}, "lychee_budget is 12.0"),
        ({"lychee_budget": True}, "lychee_budget is True"),
        ({"lychee_budget": "much"}, "lychee_budget is 'much'"),
        ({"lychee_budget": math.nan}, "lychee_budget is nan"),
        ({"lychee_mode": "best"}, "lychee_mode is 'best', allowed: topk, ratio, threshold, top_p"),
        ({"lychee_mode": "ratio"}, "lychee_value is None, allowed with lychee_mode ratio: a number above 0 to 1"),
        ({"lychee_mode": "ratio", "lychee_value": 1.5}, "lychee_value is 1.5"),
        ({"lychee_mode": "threshold", "lychee_value": 1}, "above 0 and below 1"),
        ({"lychee_mode": "top_p", "lychee_value": math.nan}, "lychee_value is nan"),
        ({"lychee_mode": "top_p", "lychee_value": True}, "lychee_value is True"),
        ({"lychee_mode": "topk", "lychee_value": 0.5}, "allowed only with lychee_mode ratio, threshold or top_p"),
        ({"lychee_value": 0.5}, "allowed only with"),
        ({"lychee_budget": "dense", "lychee_mode": "topk"}, "not allowed with lychee_budget 'dense'"),
        ({"lychee_bugdet": 5}, "lychee_bugdet is unknown, allowed: lychee_budget, lychee_mode, lychee_value"),
        ({"lychee_budget": ["auto"]}, r"lychee_budget is \['auto'\]"),
        ({"lychee_mode": ["topk"]}, r"lychee_mode is \['topk'\], allowed: topk, ratio, threshold, top_p"),
        ({"lychee_mode": "ratio", "lychee_value": 10**400}, "lychee_value is 1000"),
        ({"lychee_mode": "top_p", "lychee_value": math.inf}, "lychee_value is inf"),
        ({"lychee_policy": {}}, r"lychee_policy is \{\}, allowed: plan, block"),
        ('{"lychee_budget": 5}', "custom_params is '.*', allowed: an object"),
    ],
)
def test_refusals_name_field_value_and_range(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        BudgetRequest.from_custom_params(params, 8192)


def test_what_is_not_ours_is_left_alone() -> None:
    assert BudgetRequest.from_custom_params({"other": object()}, 8192) == BudgetRequest()
    assert BudgetRequest.from_custom_params(None, 8192) == BudgetRequest()


@pytest.mark.parametrize(
    ("request_", "prompt", "expected"),
    [
        (BudgetRequest(), 10, (Mode.TOPK, 1024, 0.0)),
        (BudgetRequest(budget=7), 10, (Mode.TOPK, 7, 0.0)),
        (BudgetRequest(budget="dense"), 10, (Mode.TOPK, DENSE, 0.0)),
        (BudgetRequest(budget="auto"), 100, (Mode.TOPK, 512, 0.0)),
        (BudgetRequest(budget="auto"), 8001, (Mode.TOPK, 1001, 0.0)),
        (BudgetRequest(budget="auto"), 100_000, (Mode.TOPK, 4096, 0.0)),
        (BudgetRequest(mode="topk"), 10, (Mode.TOPK, 1024, 0.0)),
        (BudgetRequest(mode="ratio", value=0.1), 10, (Mode.RATIO, 0, 0.1)),
        (BudgetRequest(mode="top_p", value=0.9, budget=300), 10, (Mode.TOP_P, 300, 0.9)),
    ],
)
def test_what_a_request_leaves_open_comes_from_the_plan(request_, prompt, expected) -> None:
    spec = resolve(request_, DEFAULTS, prompt)
    assert (spec.mode, spec.budget, spec.value) == expected
    assert (spec.sinks, spec.recent) == (64, 256)


def test_a_plan_may_default_to_another_mode() -> None:
    defaults = PlanDefaults(budget=None, mode="top_p", value=0.95)
    assert resolve(BudgetRequest(), defaults, 10).mode == Mode.TOP_P
    assert resolve(BudgetRequest(mode="topk"), defaults, 10).budget == 512


def spec(mode: Mode = Mode.TOPK, budget: int = 100, value: float = 0.0) -> RowSpec:
    return RowSpec(mode=mode, budget=budget, value=value, sinks=4, recent=8)


def step(specs: list[RowSpec], lengths: list[int], *, prompt: int = 50, dense_below: int = 0, every: int = 0):
    table = RowTable(8, "cpu")
    slots = list(range(1, len(specs) + 1))
    table.write(slots, specs, [prompt] * len(specs))
    return table.step(torch.tensor(slots), torch.tensor(lengths), dense_below=dense_below, recall_every=every)


def test_a_slot_that_was_never_written_is_dense() -> None:
    rows = RowTable(4, "cpu").step(torch.tensor([0, 3]), torch.tensor([1, 99]), dense_below=0, recall_every=1)
    assert rows.rows.dense.tolist() == [True, True]
    assert rows.rows.audit.tolist() == [False, False]
    assert rows.fallback.tolist() == [Fallback.NONE, Fallback.NONE]
    assert rows.bound.tolist() == [DENSE, DENSE]


def test_each_row_is_decided_for_itself() -> None:
    specs = [
        spec(budget=DENSE),
        spec(budget=100),
        spec(budget=100),
        spec(Mode.RATIO, 0, 0.1),
        spec(Mode.RATIO, 0, 1.0),
        spec(Mode.TOP_P, 0, 0.9),
        spec(Mode.RATIO, 20, 0.5),
    ]
    rows = step(specs, [1000, 101, 100, 1001, 70, 30, 1000])
    assert rows.rows.dense.tolist() == [True, False, True, False, True, False, False]
    assert rows.bound.tolist() == [DENSE, 100, 100, 101, 70, 30, 20]
    covers = Fallback.BUDGET_COVERS_CONTEXT
    assert rows.fallback.tolist() == [0, 0, covers, 0, covers, 0, 0]


def test_short_contexts_run_dense_and_say_so() -> None:
    rows = step([spec(), spec(), spec(budget=DENSE)], [500, 501, 400], dense_below=500)
    assert rows.rows.dense.tolist() == [True, False, True]
    assert rows.fallback.tolist() == [Fallback.DENSE_BELOW, 0, 0]


def test_decode_steps_one_and_every_nth_after_it_are_audited() -> None:
    prompt = 200
    audited = [
        n - prompt for n in range(prompt + 1, prompt + 10) if step([spec()], [n], prompt=prompt, every=4).rows.audit[0]
    ]
    assert audited == [1, 5, 9]
    assert not step([spec()], [prompt + 1], prompt=prompt, every=0).rows.audit[0]
    assert not step([spec(budget=DENSE)], [prompt + 1], prompt=prompt, every=4).rows.audit[0]


def test_a_reused_slot_inherits_nothing() -> None:
    table = RowTable(2, "cpu")
    table.write([1, 2], [spec(Mode.TOP_P, 7, 0.5), spec()], [10, 20])
    table.write([1], [spec(budget=DENSE)], [30])
    fresh = RowTable(2, "cpu")
    fresh.write([1], [spec(budget=DENSE)], [30])
    assert table.params[1].tolist() == fresh.params[1].tolist()
    assert table.values[1] == 0
    table.write([], [], [])


def test_the_host_decides_as_the_device_does() -> None:
    rng = random.Random()
    table = RowTable(40, "cpu")
    slots = list(range(1, 41))
    specs = [
        spec(
            mode=rng.choice(list(Mode)),
            budget=rng.choice([DENSE, 0, 1, rng.randrange(1, 400)]),
            value=rng.choice([0.1, 0.3, 1.0, rng.random()]),
        )
        for _ in slots
    ]
    table.write(slots, specs, [1] * len(slots))
    lengths = [rng.randrange(2, 500) for _ in slots]
    device = table.step(torch.tensor(slots), torch.tensor(lengths), dense_below=60, recall_every=0)
    host = table.host_rows(slots, lengths, 60)
    assert [fallback is not None for fallback in host.fallbacks] == device.rows.dense.tolist()
    assert [int(fallback or 0) for fallback in host.fallbacks] == device.fallback.tolist()
    assert host.budgets == device.bound.tolist()
    assert {type(number) for number in host.budgets} == {int}  # they are written as JSON
