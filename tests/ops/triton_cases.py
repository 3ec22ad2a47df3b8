"""Random decode layers for the Triton kernels, on a GPU or in Triton's interpreter."""

from dataclasses import dataclass, fields

import torch

from lychee_kernels.decode_plan import PlanRules, decide_rows
from lychee_kernels.hybrid_decode import HybridDecode, hybrid_decode, triton
from lychee_kernels.layout import DecodeRows, LayerHeads, Mode, TokenSets
from lychee_kernels.testing import LayerInputs, make_layer_inputs
from lychee_kernels.work import WorkShape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter computes in numpy, which has no bfloat16
DTYPES = (torch.float16, torch.bfloat16) if DEVICE == "cuda" else (torch.float16, torch.float32)
POOLS = (torch.float8_e4m3fn, torch.float8_e5m2)


def on_device(data):
    """Moves a dataclass of tensors."""
    moved = {f.name: getattr(data, f.name) for f in fields(data)}
    return type(data)(**{k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in moved.items()})


@dataclass(frozen=True)
class Case:
    """A layer with everything that an implementation needs."""

    inputs: LayerInputs
    heads: LayerHeads
    sets: TokenSets
    rows: DecodeRows
    shape: WorkShape
    scales: tuple[float, float] = (1.0, 1.0)

    def fresh_sets(self) -> TokenSets:
        return TokenSets(positions=self.sets.positions.clone(), counts=self.sets.counts.clone())

    def float64(self) -> tuple[HybridDecode, TokenSets]:
        """The definition, in float64."""
        wide = {name: getattr(self.inputs, name).double() for name in ("q", "k_buffer", "v_buffer")}
        return self._run("reference", **wide)

    def eager(self) -> HybridDecode:
        """The definition, in the precision of the inputs."""
        return self._run("reference")[0]

    def fast(self, launch: triton.Launch | None = None) -> tuple[HybridDecode, TokenSets]:
        sets = self.fresh_sets()
        result = triton.hybrid_decode(
            self.inputs.q,
            self.inputs.k_buffer,
            self.inputs.v_buffer,
            self.inputs.kv_indptr,
            self.inputs.kv_indices,
            self.heads,
            sets,
            self.rows,
            0.125,
            k_scale=self.scales[0],
            v_scale=self.scales[1],
            shape=self.shape,
            launch=launch,
        )
        return result, sets

    def _run(self, impl: str, **replaced: torch.Tensor) -> tuple[HybridDecode, TokenSets]:
        sets = self.fresh_sets()
        arguments = {f.name: getattr(self.inputs, f.name) for f in fields(self.inputs)} | replaced
        k_scale, v_scale = self.scales
        result = hybrid_decode(
            *arguments.values(), self.heads, sets, self.rows, 0.125, k_scale=k_scale, v_scale=v_scale, impl=impl
        )
        return result, sets


def random_case(
    generator: torch.Generator,
    lengths: list[int],
    roles: str,
    *,
    budgets: list[int],
    mode: Mode = Mode.TOPK,
    value: float = 0.0,
    group: int = 3,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float16,
    pool: torch.dtype | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    block: int = 16,
    programs: int = 7,
    chunk: int = 64,
    recall_every: int = 1,
) -> Case:
    """Draws a layer: R writes a root of its own, N is a retrieval head that nobody reads, S reads a root of before.

    The pool holds keys and values divided by `scales`, as `pool`.
    """
    heads = len(roles)
    layer_heads = LayerHeads(
        writes=tuple(h if role == "R" else -1 for h, role in enumerate(roles)),
        # an earlier layer's roots have their own numbers, behind this one's
        reads=tuple(heads + h % 2 if role == "S" else -1 for h, role in enumerate(roles)),
    )
    inputs = make_layer_inputs(
        lengths, kv_heads=heads, group=group, head_dim=head_dim, dtype=torch.float32, generator=generator
    )
    # SGLang's padding slot holds whatever, and a masked read may touch it
    inputs = LayerInputs(
        q=inputs.q.to(dtype),
        k_buffer=(inputs.k_buffer / scales[0]).to(pool or dtype),
        v_buffer=(inputs.v_buffer / scales[1]).to(pool or dtype),
        kv_indptr=inputs.kv_indptr,
        kv_indices=inputs.kv_indices.to(torch.int32),
    )
    batch = len(lengths)
    seq_lens = torch.tensor(lengths)
    params = torch.tensor(
        [[int(mode), budget, 3, 5, length - 1] for budget, length in zip(budgets, lengths, strict=True)]
    )
    decided = decide_rows(
        torch.arange(batch),
        seq_lens,
        params.to(torch.int32),
        torch.full((batch,), value, dtype=torch.float64),
        PlanRules(recall_every=recall_every),
    )
    sets = TokenSets.empty(batch, heads + 2, max(lengths))
    for b, root in ((b, r) for b in range(batch) for r in (heads, heads + 1)):
        bound = int(decided.bound[b]) if not decided.rows.dense[b] else 0
        count = int(torch.randint(0, bound + 1, (1,), generator=generator))
        chosen = torch.randperm(lengths[b], generator=generator)[:count].sort().values
        sets.positions[b, root, :count] = chosen.to(torch.int32)
        sets.counts[b, root] = count
    retrieval = sum(role != "S" for role in roles)
    shape = WorkShape(
        kv_heads=heads,
        group=group,
        head_dim=head_dim,
        block=block,
        programs=programs,
        chunk=chunk,
        patterns=tuple(sorted({0, retrieval, heads})),
    )
    return Case(on_device(inputs), layer_heads, on_device(sets), on_device(decided.rows), shape, scales)
