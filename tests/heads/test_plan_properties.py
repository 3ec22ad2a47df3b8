"""What holds for every head plan."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_sgl.heads.plan import AutoBudget, HeadPlan, ModelShape, PlanDefaults, PlanError

names = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def defaults(draw: st.DrawFn) -> PlanDefaults:
    low = draw(st.integers(1, 5000))
    auto = AutoBudget(draw(st.floats(0.001, 1.0)), low, low + draw(st.integers(0, 5000)))
    sinks, recent = draw(st.integers(0, 500)), draw(st.integers(0, 500))
    mode = draw(st.sampled_from(["topk", "ratio", "threshold", "top_p"]))
    budgets = st.integers(1, 2**31 - 1) | st.just("auto")
    if mode == "topk":
        return PlanDefaults(draw(budgets | st.just("dense")), "topk", None, sinks, recent, auto)
    return PlanDefaults(draw(budgets | st.none()), mode, draw(st.floats(0.001, 0.999)), sinks, recent, auto)


@st.composite
def plans(draw: st.DrawFn) -> HeadPlan:
    layers, heads, group = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    model = ModelShape(draw(names), draw(names), layers, heads * group, heads, draw(st.integers(1, 256)))
    rows = [draw(st.text("RS", min_size=heads, max_size=heads)) for _ in range(layers - 1)]
    roles = ("R" * heads, *rows)
    sparse = [(i, h) for i in range(layers) for h in range(heads) if roles[i][h] == "S"]
    sources = {
        head: (draw(st.integers(0, head[0] - 1)), draw(st.integers(0, heads - 1)))
        for head in sparse
        if draw(st.booleans())
    }
    provenance = draw(st.dictionaries(st.text(), values, max_size=3))
    return HeadPlan(draw(names), model, roles, sources, draw(defaults()), provenance)


@settings(deadline=None)  # a busy machine is no finding
@given(plans())
def test_json_round_trip(plan: HeadPlan) -> None:
    again = HeadPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.sha256() == plan.sha256()


@settings(deadline=None)  # a busy machine is no finding
@given(plans())
def test_roots_retrieve_and_come_earlier(plan: HeadPlan) -> None:
    for layer, head in plan.sparse_heads():
        root = plan.root(layer, head)
        assert plan.is_retrieval(*root)
        assert root[0] < layer
        assert root in plan.roots()
        assert plan.root(*plan.source(layer, head)) == root
    assert list(plan.roots()) == sorted(set(plan.roots()))
    assert len(plan.sparse_heads()) + plan.retrieval_count == plan.head_count


@settings(deadline=None)  # a busy machine is no finding
@given(st.recursive(values, lambda inner: st.dictionaries(st.sampled_from(["schema", "version", "roles"]), inner)))
def test_no_json_value_gives_anything_but_a_plan_error(data: Any) -> None:
    try:
        HeadPlan.from_dict(data)
    except PlanError:
        return
    raise AssertionError("a plan without a model was accepted")


@settings(deadline=None)  # a busy machine is no finding
@given(plans(), st.sampled_from(["name", "model", "roles", "sources", "defaults", "provenance"]), values)
def test_a_plan_with_one_entry_replaced_is_a_plan_or_a_plan_error(plan: HeadPlan, key: str, value: Any) -> None:
    data = {**plan.to_dict(), key: value}
    try:
        again = HeadPlan.from_dict(data)
    except PlanError:
        return
    assert HeadPlan.from_dict(again.to_dict()) == again
