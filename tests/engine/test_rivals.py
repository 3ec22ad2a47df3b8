"""Rival policies in the backend: what a request may name, and batches in which every row has its own policy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from lychee_kernels.decode_plan.api import DENSE, PlanRules
from lychee_kernels.hybrid_decode import hybrid_decode
from lychee_kernels.layout import Mode
from lychee_kernels.policies import Policy
from lychee_kernels.testing import layer
from lychee_sgl.backend import hooks
from lychee_sgl.backend.correction import Schedule
from lychee_sgl.backend.hybrid import HybridHeads
from lychee_sgl.backend.request import BudgetRequest, RowSpec, resolve
from lychee_sgl.backend.rows import RowTable
from lychee_sgl.backend.step import begin_steps, run_layer, step_results
from lychee_sgl.backend.summary import Times, summarise
from lychee_sgl.heads.plan import PlanDefaults

if TYPE_CHECKING:
    from lychee_kernels.policies.api import Attend

RULES = PlanRules(recall_every=1)


@pytest.mark.parametrize(
    ("params", "rivals", "message"),
    [
        ({"lychee_policy": "quest"}, False, "lychee_policy is 'quest', allowed: 'plan'; .* LYCHEE_RIVAL_POLICIES=1"),
        ({"lychee_policy": "best"}, True, "lychee_policy is 'best', allowed: plan, block, window, random, quest, ora"),
        ({"lychee_policy": 3}, True, "lychee_policy is 3, allowed: plan"),
        ({"lychee_policy": "oracle", "lychee_budget": "dense"}, True, "not allowed with lychee_budget 'dense'"),
        (
            {"lychee_policy": "window", "lychee_mode": "top_p", "lychee_value": 0.5},
            True,
            "lychee_mode is 'top_p', allowed with lychee_policy 'window': topk, ratio",
        ),
        ({"lychee_seed": 1}, True, "lychee_seed is 1, allowed only with lychee_policy 'random'"),
        ({"lychee_policy": "random", "lychee_seed": -1}, True, "lychee_seed is -1, allowed: a whole number from 0"),
        ({"lychee_policy": "random", "lychee_seed": True}, True, "lychee_seed is True, allowed: a whole number"),
    ],
)
def test_refusals_name_field_value_and_what_is_allowed(params, rivals, message) -> None:
    with pytest.raises(ValueError, match=message):
        BudgetRequest.from_custom_params(params, 8192, rivals=rivals)


def test_the_plan_itself_may_always_be_named() -> None:
    asked = BudgetRequest.from_custom_params({"lychee_policy": "plan", "lychee_budget": 64}, 8192)
    assert resolve(asked, PlanDefaults(budget=512), 10).policy is Policy.PLAN


def test_a_policy_needs_a_mode_with_sizes_even_where_the_plan_gives_another() -> None:
    asked = BudgetRequest(policy="quest")
    assert resolve(asked, PlanDefaults(budget=512), 10).policy is Policy.QUEST
    with pytest.raises(ValueError, match="lychee_mode is not given and the plan's is 'top_p'"):
        resolve(asked, PlanDefaults(budget=None, mode="top_p", value=0.9), 10)


def spec(policy: Policy = Policy.PLAN, budget: int = 20, seed: int = 0) -> RowSpec:
    return RowSpec(mode=Mode.TOPK, budget=budget, value=0.0, sinks=2, recent=3, policy=policy, seed=seed)


LENGTHS = [60, 75, 33, 90, 48]
SPECS = [spec(Policy.QUEST), spec(), spec(Policy.RANDOM, seed=7), spec(budget=DENSE), spec(Policy.QUEST, 30)]
LAYERS = [layer("RR"), layer("RS"), layer("SS")]


def decode(rows: list[int], attend: Attend | None = hybrid_decode) -> tuple[torch.Tensor, list]:
    """Runs three layers over these rows of one pool, and gives the last output and the statistics."""
    generator = torch.Generator().manual_seed(5)
    pool = torch.randn(2, 3, sum(LENGTHS), 2, 8, generator=generator)
    queries = torch.randn(3, len(LENGTHS), 4, 8, generator=generator)
    slots = torch.randperm(sum(LENGTHS), generator=generator).split(LENGTHS)
    table, req_to_token = RowTable(8, "cpu"), torch.zeros(9, 100, dtype=torch.int32)
    index = torch.tensor(rows) + 1
    for row in rows:
        table.write([row + 1], [SPECS[row]], [LENGTHS[row] - 1])
        req_to_token[row + 1, : LENGTHS[row]] = slots[row]
    steps = begin_steps(table, req_to_token, index, torch.tensor(LENGTHS)[rows], RULES, 2)
    for number, heads in enumerate(LAYERS):
        buffers = (pool[0, number], pool[1, number])
        out = run_layer(steps, queries[number, rows], buffers, heads, number, 0.35, attend)
    return out, step_results(steps, 3 * 2)


@pytest.mark.parametrize("attend", [hybrid_decode, None], ids=["row by row", "all rows at once"])
def test_rows_of_one_batch_do_not_see_each_others_policy(attend: Attend | None) -> None:
    together, steps = decode([0, 1, 2, 3, 4], attend)
    for row in range(5):
        alone, (step,) = decode([row])
        torch.testing.assert_close(together[row], alone[0])
        found = steps[row]._replace(batch=1)
        if attend is None and step.recall is not None:  # padded rows add up in another order
            assert found.recall == pytest.approx(step.recall, abs=1e-6)
            found = found._replace(recall=step.recall)
        assert found == step
    assert [step.batch for step in steps] == [5] * 5


def test_what_each_row_has_read() -> None:
    """Three layers of two heads. Quest: two dense layers, then sets and ceil(n / 16) pages for each head. Random: sets
    only. The plan: 2 + 1 heads read everything, 1 + 2 their sets.
    """
    _, steps = decode([0, 1, 2, 3, 4])
    assert [step.attended for step in steps] == [
        4 * 60 + 2 * (20 + 4),
        3 * 75 + 3 * 20,
        6 * 20,
        6 * 90,
        4 * 48 + 2 * (30 + 3),
    ]
    assert [step.dense_equivalent for step in steps] == [6 * n for n in LENGTHS]
    assert [step.recall is None for step in steps] == [False, False, False, True, False]


def test_a_reused_slot_inherits_no_policy() -> None:
    table = RowTable(2, "cpu")
    table.write([1], [spec(Policy.RANDOM, seed=3)], [10])
    table.write([1], [spec()], [10])
    assert (table.host_policies[1], table.host_seeds[1]) == (0, 0)


def backend(*, serves: bool) -> HybridHeads:
    made = HybridHeads()
    made.context_window, made.serves_rivals, made.batch_reqs = 8192, serves, None
    made.plan, made.table = SimpleNamespace(defaults=PlanDefaults(budget=512)), RowTable(4, "cpu")
    made.schedule = Schedule(4)
    return made


def request(slot: int, **params: object) -> SimpleNamespace:
    sampling = SimpleNamespace(
        custom_params={f"lychee_{key}": value for key, value in params.items()}, max_new_tokens=9
    )
    return SimpleNamespace(sampling_params=sampling, origin_input_ids=[1] * 30, req_pool_idx=slot)


@pytest.mark.parametrize("serves", [True, False])
def test_only_a_batch_with_a_rival_stays_out_of_the_graphs(serves: bool) -> None:
    made = backend(serves=serves)
    plain, rival = request(1, budget=100), request(2, policy="oracle")
    made.admit([plain, rival], [30, 30])
    runner = SimpleNamespace(model_runner=SimpleNamespace(lychee=made))
    for reqs, graph in ((None, True), ([plain], True), ([plain, rival], not serves)):
        made.batch_reqs = reqs
        assert hooks.around_can_run_graph(lambda *_: True, runner, None) is graph
    assert hooks.around_can_run_graph(lambda *_: True, SimpleNamespace(model_runner=SimpleNamespace()), None)


def test_graphs_are_left_alone_unless_rivals_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LYCHEE_RIVAL_POLICIES", raising=False)
    assert not any(hook.target.endswith("can_run_graph") for hook in hooks._gpu_hooks())
    monkeypatch.setenv("LYCHEE_RIVAL_POLICIES", "1")
    assert any(hook.target.endswith("can_run_graph") for hook in hooks._gpu_hooks())


def test_an_answer_names_its_rival_and_what_nobody_can_build() -> None:
    got = summarise([[None]], spec(Policy.ORACLE), 9, Times())
    assert (got["policy"], got["realisable"]) == ("oracle", False)
    assert summarise([[None]], spec(Policy.QUEST), 9, Times())["realisable"]
    assert "policy" not in summarise([[None]], spec(), 9, Times())
