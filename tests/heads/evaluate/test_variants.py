"""Many variants as rows of one batch: each is what it is alone, and what the server's operations define."""

import pytest
import torch

from lychee_kernels.hybrid_decode import hybrid_decode
from lychee_kernels.layout import DecodeRows, LayerHeads, Mode, TokenSets
from lychee_sgl.heads.evaluate.variants import Variant, VariantRows, answer_all
from lychee_sgl.heads.hybrid_hf import Decoding, Prefix, generate, hybrid_attention, prefill
from lychee_sgl.heads.measure import LoadedModel
from lychee_sgl.heads.plan import HeadPlan, PlanDefaults
from lychee_sgl.heads.rows import hidden_states, rows_attached

ROLES = (("RRR", "SRS", "SSS", "RSS"), ("RRR", "SSS", "RSR", "SSS"), ("RRR", "RRR", "SSS", "SSS"))
SOURCES = ({(1, 0): (0, 2), (2, 1): (0, 1), (3, 1): (2, 0), (3, 2): (1, 2)}, {}, {(3, 0): (1, 2)})


def some_tokens(count: int, seed: int = 1) -> list[int]:
    return torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]


def variants(tiny: LoadedModel) -> list[Variant]:
    plans = [
        HeadPlan(f"p{i}", tiny.shape, roles, sources, PlanDefaults(sinks=i, recent=3))
        for i, (roles, sources) in enumerate(zip(ROLES, SOURCES, strict=True))
    ]
    rows = [Variant(name=plan.name, plan=plan, budget=budget) for plan in plans for budget in (4, 12, 60)]
    return [Variant(name="dense", plan=None, budget=None), *rows]


def test_rows_are_the_variants_one_by_one(tiny: LoadedModel) -> None:
    differ = 0
    for seed in (1, 2, 3):
        prefix = prefill(tiny.model, some_tokens(45, seed))
        rows = variants(tiny)
        got = answer_all(tiny.model, prefix, rows, stop=frozenset(), longest=9)
        parts = answer_all(tiny.model, prefix, rows, stop=frozenset(), longest=9, at_once=4)
        assert [reply.tokens for reply in parts] == [reply.tokens for reply in got]
        for variant, reply in zip(rows, got, strict=True):
            alone = Decoding(prefix=prefix, plan=variant.plan, budget=variant.budget or 1)
            with hybrid_attention(tiny.model):
                tokens = generate(tiny.model, alone, stop=frozenset(), max_tokens=8)  # eight steps: for nine tokens
            assert list(reply.tokens[:8]) == tokens
            assert len(reply.tokens) == 9
            differ += reply.tokens != got[0].tokens
            if variant.plan is None:
                assert reply.recall is None
            else:
                assert reply.recall == pytest.approx(alone.mean_recall, abs=1e-4)
    assert differ > 3


class ServerRows:
    """The same rows through `hybrid_decode`, the operation that the server runs, layer by layer."""

    def __init__(self, prefix: Prefix, rows: list[Variant]) -> None:
        layers, _, _, size = prefix.keys.shape
        self.prefix, self.rows, self.size = prefix, rows, size
        self.added: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(layers)]
        self.roots = [() if row.plan is None else row.plan.roots() for row in rows]
        self.sets = [TokenSets.empty(1, max(1, len(roots)), 128) for roots in self.roots]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        self.added[layer].append((key, value))
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*self.added[layer], strict=True))
        outputs = []
        for index, row in enumerate(self.rows):
            k = torch.cat((self.prefix.keys[layer], keys[index]), dim=1).transpose(0, 1)
            v = torch.cat((self.prefix.values[layer], values[index]), dim=1).transpose(0, 1)
            length, heads = k.shape[0], range(k.shape[1])
            plan, roots = row.plan, self.roots[index]
            writes = tuple(roots.index((layer, head)) if (layer, head) in roots else -1 for head in heads)
            reads = tuple(
                -1 if plan is None or plan.is_retrieval(layer, head) else roots.index(plan.root(layer, head))
                for head in heads
            )
            one = torch.ones(1, dtype=torch.int32)
            asked = DecodeRows(
                mode=one * int(Mode.TOPK), budget=one * (row.budget or 1), value=torch.zeros(1, dtype=torch.float64),
                sinks=one * (plan.defaults.sinks if plan else 0), recent=one * (plan.defaults.recent if plan else 0),
                dense=torch.tensor([plan is None]), audit=torch.tensor([False]),
            )  # fmt: skip
            told = hybrid_decode(
                query[index, :, 0][None], k, v, torch.tensor([0, length]), torch.arange(length),
                LayerHeads(writes=writes, reads=reads), self.sets[index], asked, scale,
            )  # fmt: skip
            outputs.append(told.out)
        return torch.cat(outputs)[:, :, None]


def test_rows_are_what_the_servers_operation_defines(tiny: LoadedModel) -> None:
    prefix, rows = prefill(tiny.model, some_tokens(50, 7)), variants(tiny)
    mine, servers = VariantRows(prefix, rows, longest=4), ServerRows(prefix, rows)
    with torch.no_grad(), rows_attached(tiny.model):
        for step, token in enumerate(some_tokens(4, 8)):
            tokens = torch.full((len(rows), 1), token)
            got = hidden_states(tiny.model, mine, tokens, 50 + step)
            wanted = hidden_states(tiny.model, servers, tokens, 50 + step)
            assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(got[1], got[0], atol=0.05)


def test_an_answer_that_ends_at_once(tiny: LoadedModel) -> None:
    prefix = prefill(tiny.model, some_tokens(30))
    first = frozenset({int(prefix.logits.argmax())})
    replies = answer_all(tiny.model, prefix, variants(tiny), stop=first, longest=5)
    assert all(reply.tokens == () and reply.recall is None for reply in replies)
