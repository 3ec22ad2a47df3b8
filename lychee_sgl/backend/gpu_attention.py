"""The attention backend `lychee` on a GPU: FlashInfer for prefill and all-dense batches, our kernels for the rest."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

from lychee_kernels.decode_plan.api import SUMMED, Fallback, PlanRules
from lychee_kernels.decode_plan.around import report_step, snapshot_slots
from lychee_kernels.decode_plan.triton import plan_decode
from lychee_kernels.hybrid_decode.triton import Launch, attend_layer, select_layer
from lychee_kernels.work import DecodePlan, LayerTable, WorkShape, Workspace
from lychee_sgl import compat
from lychee_sgl.backend.hybrid import HybridHeads
from lychee_sgl.backend.plans import layer_heads
from lychee_sgl.backend.results import DenseSteps, DeviceSteps, HostSteps
from lychee_sgl.backend.step import begin_steps, run_layer, step_results

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from lychee_sgl.backend import step as host_step
    from lychee_sgl.backend.plans import ChosenPlan
    from lychee_sgl.backend.ranks import Ranks
    from lychee_sgl.backend.rows import HostRows
    from lychee_sgl.config import EngineConfig

logger = logging.getLogger(__name__)

MAX_ROWS = 512
"""Largest batch that our kernels take; a larger one runs dense."""
WORKSPACE_SHARE = 0.005
"""How much of the KV pool's bytes the scores of the sparse rows' contexts may take."""
PROGRAMS_PER_PROCESSOR = 2
BLOCK, CHUNK = 128, 2048


@dataclass(slots=True, kw_only=True)
class DecodeStep:
    """A decode step at hand: its real rows, without a graph's padding."""

    lengths: list[int]
    rows: HostRows


class LycheeGpuBackend(HybridHeads, FlashInferAttnBackend):
    """Hybrid-head decode inside SGLang on a GPU (DESIGN.md 2 and 9).

    SGLang captures every batch size twice. The variant `dense` is FlashInfer's decode as SGLang runs it, for batches
    all of whose rows run dense; `sparse` is ours, for any mixture. Which one runs is decided on the host before a step.

    Args:
        runner: SGLang's ModelRunner.
        chosen: the plan in use; it fits the model.
        config: the engine settings.
        ranks: of the engine.
    """

    graph_variants = ("dense", "sparse")

    def __init__(self, runner: Any, chosen: ChosenPlan, config: EngineConfig, ranks: Ranks) -> None:
        super().__init__(runner)
        self.device = torch.device(runner.device)
        self.set_up(runner, chosen, config, self.device, ranks)
        self.variant = self.variant_to_capture = "dense"
        # a pool of sixteen bits holds keys and values as they are, whatever scales a checkpoint brings
        self.scaled = self.token_to_kv_pool.get_key_buffer(0).element_size() == 1
        layers = [layer for layer in runner.model.modules() if type(layer).__name__ == "RadixAttention"]
        if self.scaled and compat.loses_scales(layers):
            self.use_paged = True
        self.max_rows = min(MAX_ROWS, self.table.params.shape[0] - 1)
        self._step: DecodeStep | None = None
        self._rivals: list[host_step.DecodeStep] = []
        self._make_kernel_state(runner)

    def _make_kernel_state(self, runner: Any) -> None:
        model, layers = self.plan.model, self.plan.model.num_hidden_layers
        properties = torch.cuda.get_device_properties(self.device)
        kv_heads = len(self.ranks.heads(model))
        self.shape = WorkShape(
            kv_heads=kv_heads,
            group=self.ranks.group_size(model),
            head_dim=model.head_dim,
            block=BLOCK,
            programs=PROGRAMS_PER_PROCESSOR * properties.multi_processor_count,
            chunk=CHUNK,
            patterns=tuple(sorted({kv_heads - heads.sparse for heads in self.heads})),
        )
        self.launch = Launch(count_programs=8 * properties.multi_processor_count)
        self.layers = [LayerTable.build(heads, self.shape.patterns, self.device) for heads in self.heads]
        self.patterns = torch.tensor(self.shape.patterns, dtype=torch.int32, device=self.device)
        readers = [sum(heads.reads.count(root) for heads in self.heads) for root in range(self.roots)]
        self.readers = torch.tensor(readers or [0], dtype=torch.int64, device=self.device)
        self.retrieval = sum(table.retrieval for table in self.layers)
        self.all_sparse = self._sparse_of_all_ranks()
        writers = max(table.writers for table in self.layers)
        tokens = int(runner.max_total_num_tokens)
        # of the rank with most writers: the rows that no longer fit have to be the same on all
        capacity = min(self.max_rows * self.context_window, self._score_capacity(tokens, self._most_writers()))
        self.rules = PlanRules(
            dense_below=self.dense_below,
            recall_every=self.recall_every,
            set_capacity=min(capacity, max(tokens, self.context_window)),
            score_capacity=capacity,
        )
        self.step_plan = DecodePlan.empty(self.max_rows, len(self.shape.patterns), self.device)
        self.workspace = Workspace.empty(
            self.shape,
            max_rows=self.max_rows,
            layers=layers,
            roots=self.roots,
            writers=writers,
            set_capacity=self.rules.set_capacity,
            score_capacity=capacity,
            device=self.device,
        )
        queries = kv_heads * self.shape.group
        self.lse = torch.empty((self.max_rows, queries), dtype=torch.float32, device=self.device)
        pool = tokens * self._token_bytes()
        logger.info(
            "lychee: %.0f MiB for sets, scores and sums, %.2f %% of the KV pool; sparse rows may have %d tokens "
            "of context together",
            self.workspace.bytes() / 2**20,
            100 * self.workspace.bytes() / pool,
            capacity,
        )
        self._meet_the_other_ranks()
        self._slots = torch.empty(0, dtype=torch.int32, device=self.device)
        self._selection = torch.cuda.Stream(self.device)
        self._selecting = False

    def _meet_the_other_ranks(self) -> None:
        """Makes sure that the same rows run dense on all, and makes the communicator before anything is captured."""
        self.ranks.agree(
            {"the room for sets and scores": [self.rules.set_capacity, self.rules.score_capacity, self.max_rows]}
        )
        self.ranks.add_up(torch.zeros((len(SUMMED), 1), dtype=torch.float64, device=self.device))
        torch.cuda.synchronize(self.device)

    def _sparse_of_all_ranks(self) -> int:
        """Sparse heads of the whole engine, copies counted."""
        ranks, model = range(self.ranks.size), self.plan.model
        columns = [head for rank in ranks for head in self.ranks.heads(model, rank)]
        return sum(row[head] == "S" for row in self.plan.roles for head in columns)

    def _most_writers(self) -> int:
        """Most sets that a layer of any rank writes."""
        plan, size = self.plan, self.ranks.size
        sliced = (layer_heads(plan, self.ranks.heads(plan.model, rank))[0] for rank in range(size))
        return max(sum(write >= 0 for write in heads.writes) for layers in sliced for heads in layers)

    def _score_capacity(self, tokens: int, writers: int) -> int:
        """Tokens of context whose scores fit the share of the pool that they may take; one whole context at least."""
        pool = tokens * self._token_bytes()
        a_token = max(1, writers) * (2 * self.shape.group + 2)
        # a multiple of 16, so that every row of scores begins where wide stores may
        return -(-max(int(self.context_window), int(pool * WORKSPACE_SHARE / a_token)) // 16) * 16

    def _token_bytes(self) -> int:
        """Bytes of one token's keys and values in the pool."""
        model, buffer = self.plan.model, self.token_to_kv_pool.get_key_buffer(0)
        entry: int = buffer.element_size()
        return 2 * int(model.num_hidden_layers) * self.shape.kv_heads * int(model.head_dim) * entry

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Prepares a forward pass that runs without a graph."""
        self._step = None
        if not forward_batch.forward_mode.is_decode():
            self.variant = "dense"
            super().init_forward_metadata(forward_batch)
        elif self.batch_has_rivals():
            self.variant = "rivals"
            slots, lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
            table = self.req_to_token_pool.req_to_token
            self._rivals = begin_steps(self.table, table, slots, lengths, self.rules, self.roots)
        elif self._choose(forward_batch) == "dense":
            super().init_forward_metadata(forward_batch)
        else:
            tokens = int(forward_batch.seq_lens_cpu.sum())
            self._slots = torch.empty(tokens, dtype=torch.int32, device=self.device)
            self._plan_sparse(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch: ForwardBatch, in_capture: bool = False) -> None:
        """Prepares a capture or a replay."""
        self._step = None
        if not forward_batch.forward_mode.is_decode_or_idle():
            super().init_forward_metadata_out_graph(forward_batch, in_capture=in_capture)
            return
        if in_capture:
            self.variant = self.variant_to_capture if forward_batch.batch_size <= self.max_rows else "dense"
        else:
            self._choose(forward_batch)
        if self.variant == "dense":
            super().init_forward_metadata_out_graph(forward_batch, in_capture=in_capture)
        else:
            self._slots = self.cuda_graph_kv_indices[0]
            self._plan_sparse(forward_batch)

    def _choose(self, forward_batch: ForwardBatch) -> str:
        """Decides the variant on the host, from lengths and budgets that it has there already."""
        reqs = self.batch_reqs
        if reqs is None or forward_batch.seq_lens_cpu is None:
            # SGLang's own warm-ups; and a batch without a copy of its lengths, whose statistics nobody could know
            self.variant = "dense"
            return self.variant
        slots = [compat.req_pool_index(req) for req in reqs]
        lengths = forward_batch.seq_lens_cpu[: len(slots)].tolist()
        rows = self.table.host_rows(slots, lengths, self.dense_below)
        self._step = DecodeStep(lengths=lengths, rows=rows)
        fits = forward_batch.batch_size <= self.max_rows
        self.variant = "sparse" if fits and None in rows.fallbacks else "dense"
        return self.variant

    def _plan_sparse(self, forward_batch: ForwardBatch) -> None:
        batch = forward_batch.batch_size
        slots, lengths = forward_batch.req_pool_indices[:batch], forward_batch.seq_lens[:batch]
        table = self.table
        plan_decode(slots, lengths, table.params, table.values, self.rules, self.shape, self.step_plan, self.patterns)
        longest = max(self._step.lengths) if self._step else self.context_window
        snapshot_slots(self.req_to_token_pool.req_to_token, slots, self.step_plan, self._slots, longest=longest)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One layer of a decode step, q [B, H*G*D]; returns [B, H*G*D]."""
        if self.variant == "dense":
            out: torch.Tensor = super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
            return out
        asked = sorted(name for name, value in kwargs.items() if value is not None)
        if asked:
            raise NotImplementedError(f"the sparse decode of lychee has no {', '.join(asked)}")
        if save_kv_cache and k is not None:
            compat.write_kv(self.token_to_kv_pool, layer, forward_batch.out_cache_loc, k, v)
        queries = q.contiguous().view(-1, layer.tp_q_head_num, layer.head_dim)
        k_scale, v_scale = compat.kv_scales(layer) if self.scaled else (1.0, 1.0)
        if self.variant == "rivals":
            return self._decode_rivals(queries, layer, k_scale, v_scale)
        result = torch.empty_like(queries)
        table, lse = self.layers[layer.layer_id], self.lse[: len(queries)]
        self._join_selection()
        keys, values = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
        attend_layer(
            queries,
            keys,
            values,
            self._slots,
            table,
            self.step_plan,
            self.workspace,
            self.shape,
            layer.scaling,
            result,
            lse,
            recall=self.workspace.recall[:, layer.layer_id] if self.recall_every else None,
            k_scale=k_scale,
            v_scale=v_scale,
            launch=self.launch,
        )
        if table.writers:
            self._select(table, lse)
        return result.view(len(queries), -1)

    def _decode_rivals(
        self, queries: torch.Tensor, layer: RadixAttention, k_scale: float, v_scale: float
    ) -> torch.Tensor:
        """A layer of a batch in which a request names a policy of its own: in torch, all rows at once."""
        pool, number = self.token_to_kv_pool.get_kv_buffer(layer.layer_id), layer.layer_id
        # a factor of all keys is one of all scores, and one of all values one of the output
        scale = layer.scaling * k_scale
        out = run_layer(self._rivals, queries, pool, self.heads[number], number, scale, attend=None)
        return (out * v_scale).to(queries.dtype).reshape(len(queries), -1)

    def _select(self, table: LayerTable, lse: torch.Tensor) -> None:
        """Selects beside what the model does until its next attention: nothing there waits for the sets."""
        self._selection.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._selection):
            select_layer(
                lse,
                self._slots,
                table,
                self.step_plan,
                self.workspace,
                self.shape,
                max_context=int(self.context_window),
                launch=self.launch,
            )
        self._selecting = True

    def _join_selection(self) -> None:
        if self._selecting:
            torch.cuda.current_stream().wait_stream(self._selection)
            self._selecting = False

    def take_results(self) -> DeviceSteps | DenseSteps | HostSteps | None:
        """Gives the statistics of the decode step that has just run, or None after anything else."""
        step, self._step = self._step, None
        if self._rivals:
            rivals, self._rivals, self.variant = self._rivals, [], "dense"
            return HostSteps(step_results(rivals, self.all_heads))
        if step is None:
            return None
        if self.variant == "sparse":
            report = report_step(
                self.step_plan,
                self.workspace,
                self.shape,
                self.readers,
                self.retrieval,
                len(step.lengths),
                sparse_heads=self.all_sparse,
            )
            self.ranks.add_up(report[: len(SUMMED)])
            return DeviceSteps(report, self.all_heads, [fallback is None for fallback in step.rows.fallbacks])
        # without a reason of its own: a batch larger than our kernels take
        reasons = [int(Fallback.WORKSPACE if fallback is None else fallback) for fallback in step.rows.fallbacks]
        return DenseSteps(step.lengths, step.rows.budgets, reasons, self.all_heads)
