"""Ranks that share a model's heads give together what one process gives alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from lychee_kernels.hybrid_decode import hybrid_decode
from lychee_kernels.layout import DecodeRows, Mode, TokenSets
from lychee_sgl.backend.plans import layer_heads
from lychee_sgl.backend.ranks import Ranks
from lychee_sgl.heads.plan import HeadPlan, ModelShape

SHAPE = ModelShape("m", "LlamaForCausalLM", 3, 8, 4, 16)
# all sources on the same of two ranks, and not all at the same index
PLAN = HeadPlan("p", SHAPE, ("RRRR", "SSRS", "SSSR"), {(1, 1): (0, 0), (2, 0): (0, 1), (2, 2): (0, 3)})
LENGTHS = [90, 40, 70]


def rows() -> DecodeRows:
    def of(values, dtype):
        return torch.tensor(values, dtype=dtype)

    return DecodeRows(
        mode=of([Mode.TOPK, Mode.TOPK, Mode.TOP_P], torch.int32),
        budget=of([20, 40, 0], torch.int32),
        value=of([0, 0, 0.8], torch.float64),
        sinks=of([2, 2, 2], torch.int32),
        recent=of([4, 4, 4], torch.int32),
        dense=of([False, True, False], torch.bool),
        audit=of([True, False, True], torch.bool),
    )


def decode(plan: HeadPlan, ranks: Ranks, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor):
    """All layers of a step on one rank: its outputs, and the sums of its statistics."""
    columns = ranks.heads(plan.model)
    layers, roots = layer_heads(plan, columns)
    share = plan.model.num_attention_heads // ranks.size
    assert share == len(columns) * ranks.group_size(plan.model)
    sets = TokenSets.empty(len(LENGTHS), roots, max(LENGTHS))
    outs, sums = [], torch.zeros(3, len(LENGTHS), dtype=torch.float64)
    for layer, heads in enumerate(layers):
        result = hybrid_decode(
            q[layer][:, ranks.rank * share : (ranks.rank + 1) * share].contiguous(),
            k[layer][:, columns].contiguous(),
            v[layer][:, columns].contiguous(),
            torch.tensor([0, *np.cumsum(LENGTHS)]),
            torch.arange(sum(LENGTHS)),
            heads,
            sets,
            rows(),
            0.25,
        )
        outs.append(result.out)
        sums += torch.stack([result.attended.double(), result.recall_sum, result.recall_heads.double()])
    return torch.stack(outs), sums


def compare(alone: tuple[HeadPlan, torch.Tensor, torch.Tensor], shared: HeadPlan, size: int, kv) -> None:
    plan, k, v = alone
    q = torch.randn(3, len(LENGTHS), 8, 16, generator=torch.Generator().manual_seed(3))
    outs, sums = decode(plan, Ranks(), q, k, v)
    parts = [decode(shared, Ranks(size=size, rank=rank), q, *kv) for rank in range(size)]
    torch.testing.assert_close(torch.cat([part for part, _ in parts], 2), outs)
    torch.testing.assert_close(sum(part for _, part in parts), sums)
    audited = 3 * plan.model.num_key_value_heads - plan.retrieval_count
    assert sums[2].tolist() == [audited, 0, audited]
    assert sums[0, 1] == LENGTHS[1] * 3 * plan.model.num_key_value_heads


def keys_and_values() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(3, sum(LENGTHS), 4, 16, generator=generator) for _ in range(2))


def test_two_ranks_together_are_one_process() -> None:
    k, v = keys_and_values()
    compare((PLAN, k, v), PLAN, 2, (k, v))


def test_copies_of_a_head_are_heads_of_their_own() -> None:
    """Eight ranks of four KV heads are as a model of eight KV heads of which two and two are equal."""
    k, v = keys_and_values()
    twice = ModelShape("m", "LlamaForCausalLM", 3, 8, 8, 16)
    plan = HeadPlan("p", SHAPE, ("RRRR", "SSRS", "RSSR"))
    doubled = HeadPlan("p", twice, tuple("".join(role * 2 for role in row) for row in plan.roles))
    compare((doubled, k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)), plan, 8, (k, v))


PROGRAM = """
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist

from lychee_sgl.backend.ranks import Ranks, RanksDiffer

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
ranks = Ranks(size=2, rank=rank, group=SimpleNamespace(device_group=dist.group.WORLD, cpu_group=dist.group.WORLD))
sums = torch.tensor([[2.0**53 - 1 if rank else 1.0], [float("nan") if rank else 0.5]], dtype=torch.float64)
ranks.add_up(sums)
ranks.agree({"a": 1, "b": [2]})
try:
    ranks.agree({"a": 1, "LYCHEE_DENSE_BELOW": rank})
except RanksDiffer as error:
    print(sums.tolist(), error)
"""


def test_sums_are_exact_and_ranks_that_differ_refuse(tmp_path: Path) -> None:
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    told = [program.communicate(timeout=120)[0] for program in programs]
    assert all(text.startswith("[[9007199254740992.0], [nan]]") for text in told)
    assert "LYCHEE_DENSE_BELOW is 0 on rank 0 and 1 on rank 1" in told[0]
    assert "LYCHEE_DENSE_BELOW is 1 on rank 1 and 0 on rank 0" in told[1]
