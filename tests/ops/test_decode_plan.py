"""A step's partition: the reference covers every block once, and the kernel writes the same."""

import pytest
import torch

from lychee_kernels.decode_plan import PlanRules, plan_decode
from lychee_kernels.decode_plan.api import Fallback, Param
from lychee_kernels.layout import Mode
from lychee_kernels.work import DecodePlan, Row, WorkShape
from tests.ops.triton_cases import DEVICE

SHAPE = WorkShape(kv_heads=4, group=2, head_dim=64, block=16, programs=6, chunk=64, patterns=(0, 1, 4))


def make_plan(
    lengths: list[int], params: list[list[int]], rules: PlanRules, impl: str, value: float = 0.3
) -> DecodePlan:
    plan = DecodePlan.empty(len(lengths) + 2, len(SHAPE.patterns), DEVICE)
    plan_decode(
        torch.arange(1, len(lengths) + 1, device=DEVICE),
        torch.tensor(lengths, device=DEVICE),
        torch.tensor([[0, -1, 0, 0, 0], *params], dtype=torch.int32, device=DEVICE),
        torch.full((len(lengths) + 1,), value, dtype=torch.float64, device=DEVICE),
        rules,
        SHAPE,
        plan,
        impl=impl,
    )
    return plan


def topk(budget: int, prompt: int = 5) -> list[int]:
    return [int(Mode.TOPK), budget, 8, 16, prompt]


def test_by_hand() -> None:
    plan = make_plan([100, 40], [topk(32), topk(-1)], PlanRules(), "reference")
    sparse, dense = plan.rows[0].tolist(), plan.rows[1].tolist()
    assert (sparse[Row.LENGTH], sparse[Row.DENSE], sparse[Row.BOUND]) == (100, 0, 32)
    assert (sparse[Row.SINKS], sparse[Row.RECENT]) == (8, 16)
    assert (dense[Row.LENGTH], dense[Row.DENSE]) == (40, 1)
    # 100 tokens are 7 blocks of 16, 32 are 2, 40 are 3
    assert plan.block_ptr[:, :3].tolist() == [[0, 8, 20], [0, 7 + 6, 25], [0, 28, 40]]
    assert plan.span.tolist() == [4, 5, 7]
    # with one retrieval head: 7 blocks in spans of 5 are 2 items, and 3 sets of one item each; 4 dense heads of one
    assert plan.item_ptr[1, :3].tolist() == [0, 5, 9]
    assert plan.kv_indptr[:3].tolist() == [0, 100, 140]
    assert plan.chunk_ptr[:3].tolist() == [0, 2, 2]


def test_rows_that_no_longer_fit_the_workspace_run_dense() -> None:
    plan = make_plan([100, 100, 100], [topk(32)] * 3, PlanRules(score_capacity=250), "reference")
    assert plan.rows[:3, Row.DENSE].tolist() == [0, 0, 1]
    assert plan.rows[:3, Row.FALLBACK].tolist() == [0, 0, int(Fallback.WORKSPACE)]
    plan = make_plan([100, 100, 100], [topk(32)] * 3, PlanRules(set_capacity=40), "reference")
    assert plan.rows[:3, Row.DENSE].tolist() == [0, 1, 1]


@pytest.mark.gpu
@pytest.mark.interpret
def test_the_kernel_writes_what_the_reference_does() -> None:
    generator = torch.Generator()
    generator.seed()

    def draw(high: int) -> int:
        return int(torch.randint(0, high, (1,), generator=generator))

    for _ in range(20):
        batch = 1 + draw(9)
        lengths = [1 + draw(400) for _ in range(batch)]
        params = [[draw(4), draw(200) - 1, draw(40), draw(60), draw(length)] for length in lengths]
        for row in params:
            row[Param.BUDGET] = row[Param.BUDGET] or 1
        rules = PlanRules(dense_below=draw(80), recall_every=draw(4), set_capacity=200 + draw(900), score_capacity=2000)
        value = (1 + draw(10)) / 10
        expected = make_plan(lengths, params, rules, "reference", value)
        actual = make_plan(lengths, params, rules, "triton", value)
        for name in DecodePlan.__slots__:
            torch.testing.assert_close(
                getattr(actual, name), getattr(expected, name), rtol=0, atol=0, msg=f"{name}: {params}"
            )
