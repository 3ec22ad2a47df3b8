"""The attention backend `lychee` on the CPU: dense prefill, hybrid-head decode, statistics of every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend

from lychee_kernels.decode_plan.api import PlanRules
from lychee_sgl import compat
from lychee_sgl.backend.hybrid import HybridHeads
from lychee_sgl.backend.results import HostSteps
from lychee_sgl.backend.step import begin_steps, run_layer, step_results
from lychee_sgl.cpu.decode import hybrid_decode
from lychee_sgl.cpu.extend import extend

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from lychee_sgl.backend.plans import ChosenPlan
    from lychee_sgl.backend.ranks import Ranks
    from lychee_sgl.backend.step import DecodeStep
    from lychee_sgl.config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendPart:
    """One request of an extend batch: its rows of q, its context's slots, and how much of that was there before."""

    start: int
    end: int
    slots: torch.Tensor
    prefix: int


class LycheeCpuBackend(HybridHeads, AttentionBackend):
    """Hybrid-head decode inside SGLang on the CPU (DESIGN.md 2).

    Args:
        runner: SGLang's ModelRunner.
        chosen: the plan in use; it fits the model.
        config: the engine settings.
        ranks: of the engine.
    """

    def __init__(self, runner: Any, chosen: ChosenPlan, config: EngineConfig, ranks: Ranks) -> None:
        super().__init__()
        self.device = torch.device(runner.device)
        self.req_to_token_pool = runner.req_to_token_pool
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.set_up(runner, chosen, config, self.device, ranks)
        self._decode: list[DecodeStep] = []
        self._extend: list[ExtendPart] = []

    def support_triton(self) -> bool:
        """SGLang would launch its own Triton kernels for batch bookkeeping; there is no device for them."""
        return False

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Prepares a forward pass: the rows and slots of a decode step, or the parts of an extend."""
        self._decode, self._extend = [], []
        if forward_batch.forward_mode.is_decode():
            self._decode = self._begin_decode(forward_batch)
        elif not forward_batch.forward_mode.is_idle():
            self._extend = self._begin_extend(forward_batch)

    def _slots(self, req_pool_index: int, length: int) -> torch.Tensor:
        return self.req_to_token_pool.req_to_token[req_pool_index, :length]

    def _begin_decode(self, forward_batch: ForwardBatch) -> list[DecodeStep]:
        rules = PlanRules(dense_below=self.dense_below, recall_every=self.recall_every)
        slots, lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
        return begin_steps(self.table, self.req_to_token_pool.req_to_token, slots, lengths, rules, self.roots)

    def _begin_extend(self, forward_batch: ForwardBatch) -> list[ExtendPart]:
        parts, start = [], 0
        rows = zip(
            forward_batch.req_pool_indices.tolist(),
            forward_batch.seq_lens.tolist(),
            forward_batch.extend_prefix_lens_cpu,
            strict=True,
        )
        for index, length, prefix in rows:
            slots = self._slots(index, length).to(torch.int64)
            parts.append(ExtendPart(start=start, end=start + length - int(prefix), slots=slots, prefix=int(prefix)))
            start = parts[-1].end
        return parts

    def _buffers(self, layer: RadixAttention) -> tuple[torch.Tensor, torch.Tensor]:
        pool, layer_id = self.token_to_kv_pool, layer.layer_id
        return pool.get_key_buffer(layer_id), pool.get_value_buffer(layer_id)

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
        _check_arguments(kwargs)
        assert self._decode, "forward_decode without init_forward_metadata"
        if save_kv_cache:
            compat.write_kv(self.token_to_kv_pool, layer, forward_batch.out_cache_loc, k, v)
        queries, layer_id = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim), layer.layer_id
        heads, scale = self.heads[layer_id], layer.scaling
        out = run_layer(self._decode, queries, self._buffers(layer), heads, layer_id, scale, hybrid_decode)
        return out.reshape(len(q), -1)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One layer of new tokens over their contexts, dense; q [tokens, H*G*D]; returns the same shape."""
        _check_arguments(kwargs)
        if save_kv_cache:
            compat.write_kv(self.token_to_kv_pool, layer, forward_batch.out_cache_loc, k, v)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = torch.empty_like(queries)
        for part in self._extend:
            out[part.start : part.end] = extend(
                queries[part.start : part.end], *self._buffers(layer), part.slots, part.prefix, layer.scaling
            )
        return out.reshape(q.shape[0], -1)

    def take_results(self) -> HostSteps | None:
        """Gives the statistics of the decode step that has just run, or None after anything else."""
        if not self._decode:
            return None
        for step in self._decode:
            step.add_up(self.ranks)
        return HostSteps(step_results(self._decode, self.all_heads))


def _check_arguments(given: dict[str, Any]) -> None:
    """Refuses what a model wants of its attention beyond queries, keys and values: left out, answers would be wrong."""
    asked = sorted(name for name, value in given.items() if value is not None)
    if asked:
        raise NotImplementedError(f"the attention of lychee on a CPU has no {', '.join(asked)}")
