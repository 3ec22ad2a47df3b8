"""How the heads of a plan lie on tensor-parallel ranks, and plans made to fit them."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lychee_sgl.heads.cli import app
from lychee_sgl.heads.cover import greedy_cover
from lychee_sgl.heads.heuristic import heuristic_plan
from lychee_sgl.heads.plan import HeadPlan, ModelShape, PlanError
from lychee_sgl.heads.ranks import (
    allowed_sizes,
    check_plan,
    crossing,
    pace,
    rank_heads,
    retrieval_by_rank,
    shardable_sizes,
)
from lychee_sgl.heads.registry import shipped_plans
from lychee_sgl.heads.shard import shard

LLAMA_8B = ModelShape("llama", "LlamaForCausalLM", 32, 32, 8, 128)
SMOL = ModelShape("smol", "LlamaForCausalLM", 30, 9, 3, 64)
FOUR = ModelShape("four", "LlamaForCausalLM", 4, 8, 4, 64)
# by hand: 1.1 reads 0.0, which is on the same of two ranks but not of four; 3.2 reads 1.3 through 2.2, on the same too
PLAN = HeadPlan("p", FOUR, ("RRRR", "RSSR", "SSSR", "SSSS"), {(1, 1): (0, 0), (2, 2): (1, 3), (3, 1): (1, 0)})


@pytest.mark.parametrize(
    ("shape", "sizes"),
    # 9 query and 3 KV heads: two ranks divide neither; six would share the KV heads but not the query heads
    [(LLAMA_8B, (1, 2, 4, 8, 16, 32)), (SMOL, (1, 3, 9)), (FOUR, (1, 2, 4, 8))],
    ids=["llama", "smol", "four"],
)
def test_sizes_over_which_sglang_can_shard(shape: ModelShape, sizes: tuple[int, ...]) -> None:
    assert shardable_sizes(shape) == sizes


def test_ranks_take_their_heads_in_order_and_copies_beyond() -> None:
    assert [list(rank_heads(8, 2, rank)) for rank in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [list(rank_heads(3, 3, rank)) for rank in range(3)] == [[0], [1], [2]]
    assert [list(rank_heads(2, 6, rank)) for rank in range(6)] == [[0], [0], [0], [1], [1], [1]]


def test_sets_that_cross_ranks_are_found_through_chains() -> None:
    assert crossing(PLAN, 2) == ()
    assert crossing(PLAN, 4) == ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2))
    assert allowed_sizes(PLAN) == (1, 2)
    check_plan(PLAN, 2)
    with pytest.raises(
        PlanError, match=r"5 sparse heads .* the first is 1\.1, which reads 0\.0; .*: 1, 2\. .*shard x\.json --tp 4"
    ):
        check_plan(PLAN, 4, path="x.json")
    with pytest.raises(PlanError, match=r"tensor parallel size is 2; allowed for smol .*: 1, 3, 9"):
        check_plan(heuristic_plan(SMOL), 2)


def test_same_index_sources_allow_every_size() -> None:
    assert allowed_sizes(heuristic_plan(LLAMA_8B)) == shardable_sizes(LLAMA_8B)


def test_pace_is_the_slowest_rank_over_the_mean_rank() -> None:
    # retrieval heads by rank of two: 2 2 | 1 1 | 0 1 | 0 0: (2 + 1 + 1 + 0) * 2 / 7
    assert retrieval_by_rank(PLAN, 2) == ((2, 2), (1, 1), (0, 1), (0, 0))
    assert pace(PLAN, 2) == pytest.approx(8 / 7)
    assert pace(PLAN, 1) == 1


def test_a_plan_is_balanced_and_keeps_what_it_can() -> None:
    # beyond layer 0 there are 1.0, 1.3 and 2.3: one for each of two ranks in layer 1, and one that does not divide
    result = shard(PLAN, 2)
    assert result.plan.roles == ("RRRR", "RSSR", "SSSS", "SSSS") or result.plan.retrieval_count == 7
    assert result.plan.retrieval_count == PLAN.retrieval_count
    assert allowed_sizes(result.plan)[:2] == (1, 2)
    assert result.plan.provenance["sharded"]["from"] == PLAN.sha256()


@pytest.mark.parametrize("tp", [2, 4, 8, 16])
def test_any_plan_of_any_size_comes_out_balanced(tp: int) -> None:
    generator = torch.Generator().manual_seed(tp)
    roles = torch.rand(32, 8, generator=generator) < 0.2
    roles[0] = True
    rows = tuple("".join("R" if flag else "S" for flag in row) for row in roles.tolist())
    sources = {
        (layer, head): (layer - 1, int(torch.randint(8, (1,), generator=generator)))
        for layer in range(1, 32)
        for head in range(8)
        if rows[layer][head] == "S"
    }
    plan = HeadPlan("random", LLAMA_8B, rows, sources, provenance={"method": "m", "scores": {"covered": 1}})
    result = shard(plan, tp)
    groups, counts = min(tp, 8), retrieval_by_rank(result.plan, min(tp, 8))
    assert result.plan.retrieval_count == plan.retrieval_count
    assert tp in allowed_sizes(result.plan)
    # what does not divide adds one to some layers' slowest rank
    rest = (plan.retrieval_count - 8) % groups
    assert sum(max(layer) for layer in counts) <= (plan.retrieval_count - 8) // groups + 8 // groups + rest
    assert max(map(sum, zip(*counts, strict=True))) - min(map(sum, zip(*counts, strict=True))) <= 1
    assert "scores" not in result.plan.provenance
    assert result.plan.provenance["method"] == "m"
    # once it fits it stays as it is
    again = shard(result.plan, tp)
    assert (again.moved, again.rerooted) == (0, 0) or rest


def test_the_shipped_plan_on_three_ranks() -> None:
    (plan,) = shipped_plans()
    result = shard(plan, 3)
    assert pace(plan, 3) > 1.5
    assert pace(result.plan, 3) == 1
    assert result.plan.retrieval_count == plan.retrieval_count


def test_a_cover_for_ranks_takes_one_head_of_each_and_serves_it_there() -> None:
    # two layers of four heads on two ranks; head 4 is worth most alone, but only with the best of 6, 7 beside it
    gain = torch.zeros(8, 8)
    for head, own in enumerate([1, 1, 1, 1, 9, 2, 3, 5]):
        gain[head, head] = own
    gain[2, 5] = 100  # of another rank: counts for nothing
    gain[1, 5] = 1
    cover = greedy_cover(gain, layers=2, heads=4, retrieval=6, ranks=2)
    assert cover.order == ((1, 0), (1, 3))
    assert cover.sources == {(1, 1): (0, 1), (1, 2): (0, 2)}
    odd = greedy_cover(gain, layers=2, heads=4, retrieval=7, ranks=2)
    assert odd.order == ((1, 0), (1, 3), (1, 1))
    with pytest.raises(ValueError, match="ranks is 3; allowed: a divisor of the 4"):
        greedy_cover(gain, layers=2, heads=4, retrieval=6, ranks=3)


def test_the_command_writes_a_plan_that_check_lets_through(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "p.json")
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "num_attention_heads": 8, '
        '"num_key_value_heads": 4, "head_dim": 64, "_name_or_path": "four"}'
    )

    def call(*words: str):
        return CliRunner().invoke(app, words)

    plan, out = str(tmp_path / "p.json"), str(tmp_path / "p4.json")
    refused = call("check", "--model", str(tmp_path), "--heads", plan, "--tp", "4")
    assert refused.exit_code == 1
    assert f"lychee-sgl heads shard {plan} --tp 4" in refused.stderr
    told = call("shard", plan, "--tp", "4", "--out", out)
    assert told.exit_code == 0, told.output
    assert "pace" in told.stdout
    checked = call("check", "--model", str(tmp_path), "--heads", out, "--tp", "4")
    assert checked.exit_code == 0, checked.output
    assert "tensor parallel: 1 (pace 1.00), 2" in checked.stdout
    assert call("shard", "no-such-model", "--tp", "4", "--out", out).exit_code == 1
