"""What a server does on the device around a planned step, and how much memory the kernels' state takes."""

import math

import pytest
import torch

from lychee_kernels.decode_plan import PlanRules, plan_decode
from lychee_kernels.decode_plan.api import SUMMED, Report
from lychee_kernels.decode_plan.around import report_step, snapshot_slots
from lychee_kernels.layout import Mode
from lychee_kernels.work import DecodePlan, WorkShape, Workspace
from tests.ops.triton_cases import DEVICE

SHAPE = WorkShape(kv_heads=2, group=3, head_dim=64, block=16, programs=4, chunk=64, patterns=(1, 2))


def made_plan(lengths: list[int], budgets: list[int], recall_every: int = 0) -> DecodePlan:
    plan = DecodePlan.empty(len(lengths), len(SHAPE.patterns), DEVICE)
    params = [[int(Mode.TOPK), budget, 2, 4, n - 1] for budget, n in zip(budgets, lengths, strict=True)]
    plan_decode(
        torch.arange(len(lengths), device=DEVICE),
        torch.tensor(lengths, device=DEVICE),
        torch.tensor(params, dtype=torch.int32, device=DEVICE),
        torch.zeros(len(lengths), dtype=torch.float64, device=DEVICE),
        PlanRules(recall_every=recall_every),
        SHAPE,
        plan,
        impl="reference",
    )
    return plan


def workspace(rows: int, roots: int, layers: int) -> Workspace:
    return Workspace.empty(
        SHAPE,
        max_rows=rows,
        layers=layers,
        roots=roots,
        writers=1,
        set_capacity=512,
        score_capacity=512,
        device=DEVICE,
    )


@pytest.mark.gpu
@pytest.mark.interpret
def test_the_snapshot_has_every_slot_of_every_row() -> None:
    lengths = [5, 1, 300]
    plan = made_plan(lengths, [-1, -1, 40])
    table = torch.arange(4 * 301, dtype=torch.int32, device=DEVICE).reshape(4, 301)
    slots = torch.full((sum(lengths) + 3,), -7, dtype=torch.int32, device=DEVICE)
    snapshot_slots(table, torch.tensor([2, 0, 3], device=DEVICE), plan, slots, longest=300)
    expected = [*table[2, :5].tolist(), 0, *table[3, :300].tolist(), -7, -7, -7]
    assert slots.tolist() == expected


@pytest.mark.gpu
@pytest.mark.interpret
def test_the_report_adds_up_what_was_read_and_held() -> None:
    # two layers of two heads, three of them retrieval heads; the sparse head reads root 1
    plan = made_plan([100, 50, 60], [20, -1, 10], recall_every=1)
    work = workspace(3, roots=2, layers=2)
    work.set_counts[:] = torch.tensor([[20, 20], [7, 7], [10, 10]], device=DEVICE)
    work.recall[0, 1, 3:] = torch.tensor([0.5, 0.7, 0.9], device=DEVICE)
    work.recall[2, 1, 3:] = 1.0
    readers = torch.tensor([0, 1], device=DEVICE)
    report = report_step(plan, work, SHAPE, readers, retrieval=3, batch=3).T.tolist()
    assert [row[Report.ATTENDED] for row in report] == [3 * 100 + 20, 4 * 50, 3 * 60 + 10]
    assert [row[Report.CONTEXT] for row in report] == [100, 50, 60]
    assert [row[Report.BUDGET] for row in report] == [20, -1, 10]
    assert report[0][Report.RECALL] == pytest.approx(0.7, abs=1e-6)
    assert math.isnan(report[1][Report.RECALL])
    assert report[2][Report.RECALL] == pytest.approx(1.0, abs=1e-6)
    # of two sparse heads the other is another device's: what both say adds up to the mean
    shared = report_step(plan, work, SHAPE, readers, retrieval=3, batch=3, sparse_heads=2)
    assert [line in SUMMED for line in Report] == [True, True, False, False, False]
    assert shared[Report.RECALL].tolist()[::2] == pytest.approx([0.35, 0.5], abs=1e-6)
    assert shared[Report.ATTENDED].tolist() == [row[Report.ATTENDED] for row in report]
    # a plan without sparse heads: nothing's recall was measured, which is not a recall of nothing
    whole = report_step(plan, work, SHAPE, torch.zeros(2, dtype=torch.int64, device=DEVICE), retrieval=4, batch=3)
    assert whole[Report.ATTENDED].tolist() == [400, 200, 240]
    assert whole[Report.RECALL].isnan().all()


@pytest.mark.parametrize(("entry", "share"), [(2, 0.01), (1, 0.011)])
def test_the_state_takes_about_a_hundredth_of_the_pool_at_most(entry: int, share: float) -> None:
    # Llama-3.1-8B, six contexts of 128K, 32 roots of which layer 0 writes eight: what the backend allocates
    shape = WorkShape(kv_heads=8, group=4, head_dim=128, block=128, programs=264, chunk=2048, patterns=(0, 1, 2, 8))
    tokens = 6 * 131_072
    pool = tokens * 2 * 32 * 8 * 128 * entry
    state = Workspace.empty(
        shape,
        max_rows=512,
        layers=32,
        roots=32,
        writers=8,
        set_capacity=tokens,
        score_capacity=int(0.005 * pool / (8 * 10)),
        device="meta",
    )
    assert state.bytes() < share * pool
