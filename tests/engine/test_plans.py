"""Which plan an engine takes, and what its layers' heads then write and read."""

import logging

import pytest

from lychee_sgl.backend.plans import choose_plan, layer_heads
from lychee_sgl.heads.plan import HeadPlan, ModelShape, PlanError

SHAPE = ModelShape("some-model", "LlamaForCausalLM", 4, 4, 2, 8)


def test_chains_resolve_to_roots_and_unread_sets_are_not_written() -> None:
    plan = HeadPlan("p", SHAPE, ("RR", "SS", "RS", "SS"), {(3, 1): (1, 0)})
    layers, roots = layer_heads(plan)
    # read are 0.0 (by 1.0, and so by 3.1), 0.1 (by 1.1 and 2.1), 2.0 (by 3.0)
    assert roots == 3
    assert [heads.writes for heads in layers] == [(0, 1), (-1, -1), (2, -1), (-1, -1)]
    assert [heads.reads for heads in layers] == [(-1, -1), (0, 1), (-1, 1), (2, 0)]


def test_a_retrieval_head_that_nobody_reads_selects_nothing() -> None:
    layers, roots = layer_heads(HeadPlan("p", SHAPE, ("RR", "RS", "RR", "RR")))
    assert roots == 1
    assert [heads.writes for heads in layers] == [(-1, 0), (-1, -1), (-1, -1), (-1, -1)]


def test_without_a_plan_the_heuristic_serves_and_warns(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        chosen = choose_plan(None, SHAPE)
    assert chosen.heuristic
    assert chosen.describe()["heuristic"] is True
    assert chosen.plan.retrieval_count == chosen.plan.head_count / 2 + 1
    assert "lychee-sgl heads calibrate --model some-model" in caplog.text


def test_a_plan_of_another_shape_is_refused_with_both_named(tmp_path) -> None:
    path = tmp_path / "plan.json"
    HeadPlan("p", SHAPE, ("RR", "SS", "RS", "SS")).save(path)
    assert choose_plan(path, SHAPE).plan.name == "p"
    other = ModelShape("big", "LlamaForCausalLM", 5, 4, 2, 8)
    with pytest.raises(PlanError, match=r"some-model \(.* 4 layers.* big \(.* 5 layers"):
        choose_plan(path, other)
