"""Rival plans: exactly as many retrieval heads as asked, where their rule says."""

import pytest
import torch

from lychee_sgl.heads.plan import HeadPlan, ModelShape, PlanDefaults
from lychee_sgl.heads.rivals import (
    chequered_plan,
    cover_plan,
    even_plan,
    layerwise_plan,
    random_plan,
    with_measured_sources,
)

SHAPE = ModelShape("m", "LlamaForCausalLM", 8, 6, 3, 8)
DEFAULTS = PlanDefaults(budget=64, sinks=4, recent=8)
GAIN = torch.rand(24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("retrieval", [4, 6, 9, 13, 23])
def test_every_rival_has_exactly_as_many(retrieval: int) -> None:
    plans = [
        random_plan(SHAPE, retrieval, seed=1, defaults=DEFAULTS),
        even_plan(SHAPE, retrieval, defaults=DEFAULTS),
        layerwise_plan(SHAPE, retrieval, defaults=DEFAULTS),
        cover_plan(SHAPE, retrieval, GAIN, weighting="mass", defaults=DEFAULTS),
    ]
    plans += [with_measured_sources(plan, GAIN) for plan in plans[:3]]
    assert [plan.retrieval_count for plan in plans] == [retrieval] * 7
    assert all(plan.roles[0] == "RRR" and plan.defaults == DEFAULTS for plan in plans)


def test_whole_layers_by_hand() -> None:
    plan = layerwise_plan(SHAPE, 12, defaults=DEFAULTS)  # layers 0 and 1, then two of the six behind, at even distances
    assert plan.roles == ("RRR", "RRR", "SSS", "RRR", "SSS", "SSS", "RRR", "SSS")
    assert plan.root(5, 2) == (3, 2)
    assert layerwise_plan(SHAPE, 7, defaults=DEFAULTS).roles[5] == "RSS"


def test_even_distances_by_hand() -> None:
    plan = even_plan(SHAPE, 6, defaults=DEFAULTS)  # three of 21 heads: the 4th, the 11th and the 18th
    assert [i for i, role in enumerate("".join(plan.roles[1:])) if role == "R"] == [3, 10, 17]


def test_random_plans_follow_their_seed() -> None:
    one, again, other = (random_plan(SHAPE, 9, seed=seed, defaults=DEFAULTS) for seed in (1, 1, 2))
    assert one.roles == again.roles != other.roles


def test_measured_sources_are_the_best_there_are() -> None:
    plan = with_measured_sources(random_plan(SHAPE, 9, seed=1, defaults=DEFAULTS), GAIN)
    assert plan.name == "random-measured"
    for layer, head in plan.sparse_heads():
        best = plan.source(layer, head)
        assert plan.is_retrieval(*best)
        for other in range(layer * 3):
            if plan.is_retrieval(*divmod(other, 3)):
                assert GAIN[other, layer * 3 + head] <= GAIN[best[0] * 3 + best[1], layer * 3 + head]


def test_the_heuristic_keeps_its_half() -> None:
    plan = chequered_plan(SHAPE, defaults=DEFAULTS)
    assert isinstance(plan, HeadPlan)
    assert plan.retrieval_count == 3 + 7 * 3 // 2
    with pytest.raises(ValueError, match="retrieval heads is 3; allowed: 4 to 23"):
        even_plan(SHAPE, 3, defaults=DEFAULTS)
