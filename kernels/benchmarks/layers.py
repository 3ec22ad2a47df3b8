"""A model's layers over pools of random keys and values, for benchmarks: ours and FlashInfer's dense decode."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from lychee_kernels.decode_plan.api import DENSE, PlanRules
from lychee_kernels.decode_plan.triton import plan_decode
from lychee_kernels.hybrid_decode.triton import Launch, attend_layer, select_layer
from lychee_kernels.layout import LayerHeads
from lychee_kernels.work import DecodePlan, LayerTable, WorkShape, Workspace


@dataclass(frozen=True, kw_only=True)
class Model:
    """Shapes of a model's attention."""

    name: str
    layers: int
    kv_heads: int
    group: int
    head_dim: int


MODELS = {
    "llama-3.1-8b": Model(name="llama-3.1-8b", layers=32, kv_heads=8, group=4, head_dim=128),
    "qwen3-8b": Model(name="qwen3-8b", layers=36, kv_heads=8, group=4, head_dim=128),
}


POOLS = {"bf16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
"""What the pool may hold, by SGLang's names."""


def spread_roles(model: Model, retrieval: int, seed: int) -> list[LayerHeads]:
    """Roles of every layer: layer 0 whole, the others drawn; sparse heads read the same index's last retrieval head."""
    rest = [(layer, head) for layer in range(1, model.layers) for head in range(model.kv_heads)]
    chosen = set(random.Random(seed).sample(rest, retrieval - model.kv_heads))
    chosen |= {(0, head) for head in range(model.kv_heads)}
    root_of = dict.fromkeys(range(model.kv_heads), -1)
    layers, roots = [], 0
    for layer in range(model.layers):
        writes, reads = [], []
        for head in range(model.kv_heads):
            is_root = (layer, head) in chosen
            if is_root:
                root_of[head], roots = roots, roots + 1
            writes.append(root_of[head] if is_root else -1)
            reads.append(-1 if is_root else root_of[head])
        layers.append(LayerHeads(writes=tuple(writes), reads=tuple(reads)))
    return layers


@dataclass(kw_only=True)
class Step:
    """One decode step of a batch over all layers; `pools` pools of keys and values take turns as the layers'.

    A pool of eight bits holds them divided by `scales`, as one with a checkpoint's scales does.
    `share` is another step whose pools and queries are used.
    """

    model: Model
    lengths: list[int]
    budgets: list[int]
    roles: list[LayerHeads]
    programs: int
    block: int = 128
    chunk: int = 2048
    pools: int = 8
    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype = torch.bfloat16
    launch: Launch = field(default_factory=Launch)
    audit: bool = False
    scattered: bool = False
    share: Step | None = None

    @property
    def scales(self) -> tuple[float, float]:
        """What keys and values of the pool are multiplied with."""
        return (1.0, 1.0) if self.kv_dtype.itemsize > 1 else (0.5, 2.0)

    def __post_init__(self) -> None:
        model, batch, total = self.model, len(self.lengths), sum(self.lengths)
        device, heads = "cuda", self.model.kv_heads
        self.roots = sum(w >= 0 for layer in self.roles for w in layer.writes)
        patterns = tuple(sorted({heads - layer.sparse for layer in self.roles}))
        self.shape = WorkShape(
            kv_heads=heads,
            group=model.group,
            head_dim=model.head_dim,
            block=self.block,
            programs=self.programs,
            chunk=self.chunk,
            patterns=patterns,
        )
        self.tables = [LayerTable.build(layer, patterns, device) for layer in self.roles]
        if self.share is None:
            self._draw(total, batch)
        else:
            for name in ("keys", "values", "kv_indices", "queries"):
                setattr(self, name, getattr(self.share, name))
        self.outs = [torch.full_like(q, torch.nan) for q in self.queries]
        self.lse = torch.empty((batch, heads * model.group), dtype=torch.float32, device=device)
        self.seq_lens = torch.tensor(self.lengths, device=device)
        self.slots = torch.arange(1, batch + 1, device=device)
        self.params = torch.tensor(
            [
                [0, DENSE, 0, 0, 0],
                *([0, budget, 64, 256, n - 1] for budget, n in zip(self.budgets, self.lengths, strict=True)),
            ],
            dtype=torch.int32,
            device=device,
        )
        self.fractions = torch.zeros(batch + 1, dtype=torch.float64, device=device)
        self.patterns = torch.tensor(patterns, dtype=torch.int32, device=device)
        self.plan = DecodePlan.empty(batch, len(patterns), device)
        sparse = [min(b, n) for b, n in zip(self.budgets, self.lengths, strict=True) if b != DENSE]
        self.workspace = Workspace.empty(
            self.shape,
            max_rows=batch,
            layers=model.layers,
            roots=self.roots,
            writers=max(t.writers for t in self.tables),
            set_capacity=sum(sparse) + 1,
            score_capacity=-(-total // 16) * 16,
            device=device,
        )

    def _draw(self, total: int, batch: int) -> None:
        model, device = self.model, "cuda"
        slots = (total + 1, model.kv_heads, model.head_dim)
        self.keys = [self._random(slots) for _ in range(self.pools)]
        self.values = [self._random(slots) for _ in range(self.pools)]
        order = torch.randperm(total, device=device) if self.scattered else torch.arange(total, device=device)
        self.kv_indices = (1 + order).to(torch.int32)
        queries = (batch, model.kv_heads * model.group, model.head_dim)
        self.queries = [torch.randn(queries, dtype=self.dtype, device=device) for _ in range(model.layers)]

    def _random(self, shape: tuple[int, int, int]) -> torch.Tensor:
        """Normal numbers as a pool holds them; made in parts, for the wide ones are twice as large."""
        made = torch.empty(shape, dtype=self.kv_dtype, device="cuda")
        for part in made.split(1 << 16):
            part.copy_(torch.randn(part.shape, dtype=self.dtype, device="cuda"))
        return made

    def make_plan(self) -> None:
        """Decides the rows and cuts up the work, as once before every step."""
        rules = PlanRules(recall_every=2**30 if self.audit else 0)
        plan_decode(self.slots, self.seq_lens, self.params, self.fractions, rules, self.shape, self.plan, self.patterns)

    def run_layer(self, layer: int) -> None:
        """One layer of ours."""
        attend_layer(
            self.queries[layer],
            self.keys[layer % self.pools],
            self.values[layer % self.pools],
            self.kv_indices,
            self.tables[layer],
            self.plan,
            self.workspace,
            self.shape,
            self.model.head_dim**-0.5,
            self.outs[layer],
            self.lse,
            recall=self.workspace.recall[:, layer] if self.audit else None,
            k_scale=self.scales[0],
            v_scale=self.scales[1],
            launch=self.launch,
        )
        if self.tables[layer].writers:
            select_layer(
                self.lse,
                self.kv_indices,
                self.tables[layer],
                self.plan,
                self.workspace,
                self.shape,
                max_context=max(self.lengths),
                launch=self.launch,
            )

    def run(self) -> None:
        """All layers of ours."""
        for layer in range(self.model.layers):
            self.run_layer(layer)


class DenseStep:
    """The same step in FlashInfer, every head over everything, on the memory of a `Step`."""

    def __init__(self, step: Step) -> None:
        import flashinfer

        self.step, model = step, step.model
        batch = len(step.lengths)
        self.workspace = torch.empty(512 * 2**20, dtype=torch.uint8, device="cuda")
        indptr = torch.tensor([0, *torch.tensor(step.lengths).cumsum(0).tolist()], dtype=torch.int32, device="cuda")
        last = torch.ones(batch, dtype=torch.int32, device="cuda")
        # as SGLang 0.5.17 makes it: tensor cores from a group of four on, and always for eight bits
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            self.workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=model.group >= 4 or step.kv_dtype.itemsize == 1,
            paged_kv_indptr_buffer=torch.empty_like(indptr),
            paged_kv_indices_buffer=torch.empty_like(step.kv_indices),
            paged_kv_last_page_len_buffer=torch.empty_like(last),
        )
        self.wrapper.plan(
            indptr,
            step.kv_indices,
            last,
            model.kv_heads * model.group,
            model.kv_heads,
            model.head_dim,
            1,
            q_data_type=step.dtype,
            kv_data_type=step.kv_dtype,
        )

    def run_layer(self, layer: int) -> torch.Tensor:
        """One layer."""
        step = self.step
        shape = (-1, 1, step.model.kv_heads, step.model.head_dim)
        pool = (step.keys[layer % step.pools].view(shape), step.values[layer % step.pools].view(shape))
        scales = dict(zip(("k_scale", "v_scale"), step.scales, strict=True)) if step.kv_dtype.itemsize == 1 else {}
        out: torch.Tensor = self.wrapper.run(step.queries[layer], pool, **scales)
        return out

    def run(self) -> None:
        """All layers."""
        for layer in range(self.step.model.layers):
            self.run_layer(layer)
