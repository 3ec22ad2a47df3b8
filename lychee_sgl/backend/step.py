"""One decode step of a batch on the host: what its layers read, and what they add up, policy by policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lychee_kernels.hybrid_decode import batched as hybrid_batched
from lychee_kernels.layout import TokenSets
from lychee_kernels.padded import parts_of
from lychee_kernels.policies import Policy, PolicyRows, policy_decode
from lychee_kernels.policies import batched as policies_batched
from lychee_sgl.backend.summary import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lychee_kernels.decode_plan.api import PlanRules, RowDecisions
    from lychee_kernels.layout import LayerHeads
    from lychee_kernels.padded import Part
    from lychee_kernels.policies.api import Attend
    from lychee_sgl.backend.ranks import Ranks
    from lychee_sgl.backend.rows import RowTable


@dataclass(slots=True, kw_only=True)
class DecodeStep:
    """The rows of a batch that have one policy; nearly always that is the whole batch.

    Attributes:
        members: the rows' places in the batch; None for all of it.
        policy: of these rows.
        seeds: of these rows, for the policy `random`.
        batch: rows of the whole batch.
        parts: how the rows lie beside each other, once a layer has run for all of them at once.
    """

    members: torch.Tensor | None
    policy: Policy
    seeds: tuple[int, ...]
    batch: int
    rows: RowDecisions
    seq_lens: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    sets: TokenSets
    attended: torch.Tensor
    recall_sum: torch.Tensor
    recall_heads: torch.Tensor
    parts: list[Part] | None = None

    def run(
        self,
        q: torch.Tensor,
        buffers: tuple[torch.Tensor, torch.Tensor],
        heads: LayerHeads,
        layer: int,
        sm_scale: float,
        attend: Attend | None,
    ) -> torch.Tensor:
        """Runs one layer for these rows.

        Args:
            q: [B, H*G, D] of the whole batch.
            buffers: the layer's keys and values, [slots, H, D].
            heads: the plan's roles in this layer.
            layer: which layer.
            sm_scale: factor of the scores.
            attend: the implementation of `hybrid_decode`; None: everything for all rows at once, in torch.

        Returns:
            [rows, H*G, D] of these rows.
        """
        mine = q if self.members is None else q[self.members]
        pool = (mine, *buffers, self.kv_indptr, self.kv_indices, heads, self.sets, self.rows.rows)
        asked = PolicyRows(policy=self.policy, layer=layer, seeds=self.seeds)
        if attend is None:
            keys = buffers[0]
            parts = self.parts = self.parts or parts_of(self.kv_indptr, self.kv_indices, keys.shape[1] * keys.shape[2])
            if self.policy is Policy.PLAN:
                result = hybrid_batched.hybrid_decode(*pool, sm_scale, parts=parts)
            else:
                result = policies_batched.policy_decode(
                    *pool, asked, sm_scale, parts=parts, most=self.sets.positions.shape[2]
                )
        elif self.policy is Policy.PLAN:
            result = attend(*pool, sm_scale)
        else:
            result = policy_decode(*pool, asked, sm_scale, attend=attend)
        self.attended += result.attended
        self.recall_sum += result.recall_sum
        self.recall_heads += result.recall_heads
        return result.out

    def add_up(self, ranks: Ranks) -> None:
        """Makes the sums those of all ranks, once all layers have run; all ranks call it."""
        sums = torch.stack([self.attended.double(), self.recall_sum, self.recall_heads.double()])
        ranks.add_up(sums)
        self.attended, self.recall_sum, self.recall_heads = sums[0].long(), sums[1], sums[2].long()

    def results(self, all_heads: int) -> list[Step]:
        """Gives each of these rows' statistics, once all layers have run, of so many KV heads in all layers."""
        lengths, fallback, bound = (t.tolist() for t in (self.seq_lens, self.rows.fallback, self.rows.bound))
        attended, mass, heads = (t.tolist() for t in (self.attended, self.recall_sum, self.recall_heads))
        return [
            Step(
                attended=attended[b],
                dense_equivalent=lengths[b] * all_heads,
                fallback=fallback[b],
                budget=bound[b],
                context=lengths[b],
                recall=mass[b] / heads[b] if heads[b] else None,
                batch=self.batch,
            )
            for b in range(len(lengths))
        ]


def begin_steps(
    table: RowTable,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    rules: PlanRules,
    roots: int,
) -> list[DecodeStep]:
    """Prepares a decode step.

    Args:
        table: what the requests asked for.
        req_to_token: SGLang's table of slots, [max_reqs + 1, context].
        req_pool_indices: [B] the batch's requests.
        seq_lens: [B] their contexts, the current token included.
        rules: what is the same for all rows.
        roots: sets of a row that runs by plan.

    Returns:
        One step for each policy in the batch.
    """
    slots: list[int] = req_pool_indices.tolist()
    policies = [Policy(number) for number in table.host_policies[slots]]
    if len({*policies}) <= 1:
        policy = policies[0] if policies else Policy.PLAN
        return [_begin(table, req_to_token, req_pool_indices, seq_lens, rules, roots, policy, None)]
    steps = []
    for policy in sorted({*policies}):
        rows = torch.tensor([b for b, other in enumerate(policies) if other is policy], device=seq_lens.device)
        steps.append(
            _begin(table, req_to_token, req_pool_indices[rows], seq_lens[rows], rules, roots, policy, rows, len(slots))
        )
    return steps


def _begin(
    table: RowTable,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    rules: PlanRules,
    roots: int,
    policy: Policy,
    members: torch.Tensor | None,
    batch: int | None = None,
) -> DecodeStep:
    seq_lens, device = seq_lens.to(torch.int64), seq_lens.device
    indices, lengths = req_pool_indices.tolist(), seq_lens.tolist()
    rows = table.step(req_pool_indices, seq_lens, dense_below=rules.dense_below, recall_every=rules.recall_every)
    count = len(lengths)
    capacity = int(torch.where(rows.rows.dense, 0, rows.bound).max()) if count else 0
    return DecodeStep(
        members=members,
        policy=policy,
        seeds=tuple(table.host_seeds[indices].tolist()),
        batch=batch or count,
        rows=rows,
        seq_lens=seq_lens,
        kv_indptr=torch.cat([seq_lens.new_zeros(1), seq_lens.cumsum(0)]),
        kv_indices=torch.cat([req_to_token[r, :n] for r, n in zip(indices, lengths, strict=True)]).to(torch.int64),
        sets=TokenSets(
            positions=torch.empty((count, roots, capacity), dtype=torch.int32, device=device),
            counts=torch.zeros((count, roots), dtype=torch.int32, device=device),
        ),
        attended=torch.zeros(count, dtype=torch.int64, device=device),
        recall_sum=torch.zeros(count, dtype=torch.float64, device=device),
        recall_heads=torch.zeros(count, dtype=torch.int64, device=device),
    )


def run_layer(
    steps: Sequence[DecodeStep],
    q: torch.Tensor,
    buffers: tuple[torch.Tensor, torch.Tensor],
    heads: LayerHeads,
    layer: int,
    sm_scale: float,
    attend: Attend | None,
) -> torch.Tensor:
    """Runs one layer for the whole batch; see `DecodeStep.run`. Returns [B, H*G, D]."""
    if len(steps) == 1:
        return steps[0].run(q, buffers, heads, layer, sm_scale, attend)
    out = torch.empty_like(q)
    for step in steps:
        out[step.members] = step.run(q, buffers, heads, layer, sm_scale, attend)
    return out


def step_results(steps: Sequence[DecodeStep], all_heads: int) -> list[Step]:
    """Gives the statistics of all rows in the order of the batch; see `DecodeStep.results`."""
    if len(steps) == 1:
        return steps[0].results(all_heads)
    placed: dict[int, Step] = {}
    for step in steps:
        assert step.members is not None
        placed.update(zip(step.members.tolist(), step.results(all_heads), strict=True))
    return [placed[row] for row in sorted(placed)]
