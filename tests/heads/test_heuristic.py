"""The plan for unknown models, and which models get a shipped plan."""

import dataclasses

import pytest

from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.plan import ModelShape
from lychee_sgl.heads.registry import PLANS, find_plan, shipped_plans

SMOL = ModelShape("SmolLM2-135M-Instruct", "LlamaForCausalLM", 30, 9, 3, 64)


def test_roles_of_a_small_model() -> None:
    plan = heuristic_plan(ModelShape("m", "LlamaForCausalLM", 4, 6, 3, 8))
    assert plan.roles == ("RRR", "SRS", "RSR", "SRS")
    assert not plan.sources
    assert plan.provenance["method"] == "heuristic"


@pytest.mark.parametrize("heads", [1, 2, 3, 8])
def test_half_of_the_heads_and_no_chain_longer_than_one(heads: int) -> None:
    plan = heuristic_plan(ModelShape("m", "LlamaForCausalLM", 33, heads, heads, 8))
    beyond = plan.retrieval_count - heads  # layer 0 retrieves as a whole
    assert abs(beyond - 32 * heads / 2) <= 0.5
    for layer, head in plan.sparse_heads():
        assert plan.root(layer, head) == (layer - 1, head)


def test_every_shipped_file_is_a_plan_that_is_found_by_its_own_shape() -> None:
    plans = shipped_plans()
    assert plans
    assert len(plans) == len([path for path in PLANS.glob("*.json") if ".measured." not in path.name])
    for plan in plans:
        assert find_plan(plan.model) == plan


@pytest.mark.parametrize(
    "name",
    [
        "SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "/models/smollm2-135m-instruct/",
        "C:\\models\\SmolLM2-135M-Instruct",
        "bartowski/SmolLM2-135M-Instruct-GGUF",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "cache/SmolLM2-135M-Instruct-b179c9523d0e",
    ],
)
def test_the_embedded_model_gets_its_plan(name: str) -> None:
    plan = find_plan(dataclasses.replace(SMOL, name=name))
    assert plan is not None
    assert plan.model.name == "SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    "name",
    [
        "SmolLM2-135M",  # the base model: other weights
        "SmolLM2-135M-Instruct-finetuned",
        "My-SmolLM2-135M-Instruct",
        "SmolLM2-135M-Instruct/checkpoint-100",
        "unnamed",
    ],
)
def test_another_model_of_the_same_shape_gets_none(name: str) -> None:
    assert find_plan(dataclasses.replace(SMOL, name=name)) is None


def test_further_names_count_and_shapes_must_agree() -> None:
    stranger = dataclasses.replace(SMOL, name="unnamed")
    assert find_plan(stranger, "SmolLM2-135M-Instruct") is not None
    assert find_plan(dataclasses.replace(SMOL, num_hidden_layers=32)) is None


def test_the_shipped_plan_keeps_the_share_that_makes_it_worth_having() -> None:
    plan = find_plan(SMOL)
    assert plan is not None
    assert plan.retrieval_count / plan.head_count <= 0.375
    (scores,) = (row for row in plan.provenance["scores"]["needles"] if row["budget"] == plan.defaults.budget)
    assert scores["questions"] >= 20
    assert scores["answered"] >= 0.9 * scores["questions"]
