"""A plan made to fit a number of ranks, from the plan alone (DESIGN.md 12). Standard library only.

Without the gains that a calibration measures, what a head is worth shows only in what the plan does with it: a
retrieval head by how many sparse heads read its set, a sparse head by whether it keeps its root.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lychee_sgl.heads.ranks import check_tp, crossing, rank_heads, rank_of

if TYPE_CHECKING:
    from lychee_sgl.heads.plan import Head, HeadPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharded:
    """A plan that fits so many ranks, and what had to change.

    Attributes:
        plan: the new plan; the old one's measured scores are not in it.
        moved: retrieval heads that are sparse now; as many others retrieve in their place.
        rerooted: heads that were sparse before and read another root now.
    """

    plan: HeadPlan
    moved: int
    rerooted: int


def shard(plan: HeadPlan, tp: int) -> Sharded:
    """Give every rank the same number of retrieval heads in each layer, and every sparse head a root on its rank.

    The number of retrieval heads stays. A layer gets as many for each rank as comes nearest to what it had; on each
    rank the plan's own retrieval heads go first, those with most readers before others, and then the sparse heads
    whose root lies elsewhere. What does not divide by the ranks is spread, one a rank.

    Args:
        plan: any plan.
        tp: ranks.

    Raises:
        PlanError: the model cannot be sharded so.
    """
    check_tp(plan.model, tp)
    groups = min(tp, plan.model.num_key_value_heads)
    chosen = _choose(plan, groups)
    roles = tuple(
        "".join("R" if (layer, head) in chosen else "S" for head in range(plan.model.num_key_value_heads))
        for layer in range(plan.model.num_hidden_layers)
    )
    sources = {
        (layer, head): _root(plan, chosen, (layer, head), groups)
        for layer, row in enumerate(roles)
        for head, role in enumerate(row)
        if role == "S"
    }
    old = {head: plan.root(*head) for head in plan.sparse_heads()}
    rerooted = sum(sources[head] != root for head, root in old.items() if head in sources)
    provenance = {key: value for key, value in plan.provenance.items() if key != "scores"}
    moved = sum(plan.roles[layer][head] == "S" for layer, head in chosen)
    new = dataclasses.replace(
        plan,
        name=f"{plan.name}-tp{tp}",
        roles=roles,
        sources=sources,
        provenance={
            **provenance,
            "sharded": {"tp": tp, "from": plan.sha256(), "moved": moved, "rerooted": rerooted},
        },
    )
    return Sharded(plan=new, moved=moved, rerooted=rerooted)


def _choose(plan: HeadPlan, groups: int) -> set[Head]:
    """The retrieval heads of the new plan."""
    heads, layers = plan.model.num_key_value_heads, plan.model.num_hidden_layers
    share = heads // groups
    had = [row.count("R") for row in plan.roles]
    readers = Counter(plan.root(*head) for head in plan.sparse_heads())
    lost = set(crossing(plan, groups))

    def worth(head: Head) -> tuple[bool, int, bool, int]:
        return not plan.is_retrieval(*head), -readers[head], head not in lost, head[1]

    each = [0] * layers  # retrieval heads of every rank, by layer
    for _ in range((plan.retrieval_count - heads) // groups):
        open_layers = [layer for layer in range(1, layers) if each[layer] < share]
        each[max(open_layers, key=lambda layer: (had[layer] - each[layer] * groups, -layer))] += 1
    chosen: set[Head] = {(0, head) for head in range(heads)}
    for layer in range(1, layers):
        for rank in range(groups):
            mine = sorted(((layer, head) for head in rank_heads(heads, groups, rank)), key=worth)
            chosen.update(mine[: each[layer]])
    for rank in range((plan.retrieval_count - heads) % groups):
        left = [(i, head) for i in range(1, layers) for head in rank_heads(heads, groups, rank)]
        chosen.add(min((head for head in left if head not in chosen), key=lambda head: (*worth(head), head[0])))
    return chosen


def _root(plan: HeadPlan, chosen: set[Head], head: Head, groups: int) -> Head:
    """The root of a sparse head: the old one if it may stay, else the nearest on its rank, the same index first."""
    heads = plan.model.num_key_value_heads
    rank = rank_of(head[1], heads, groups)
    if not plan.is_retrieval(*head):
        old = plan.root(*head)
        if old in chosen and rank_of(old[1], heads, groups) == rank:
            return old
    usable = [h for h in chosen if h[0] < head[0] and rank_of(h[1], heads, groups) == rank]
    return max(usable, key=lambda h: (h[0], h[1] == head[1], -h[1]))
