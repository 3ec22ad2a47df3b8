"""What the backend is on every device: a head plan, the row tables, and who is in the batch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lychee_kernels.decode_plan.api import DENSE
from lychee_sgl import __version__, compat
from lychee_sgl.backend.correction import Schedule, correct, refusals
from lychee_sgl.backend.plans import layer_heads
from lychee_sgl.backend.request import BudgetRequest, resolve
from lychee_sgl.backend.rows import RowTable

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from lychee_sgl.backend.correction import Corrected
    from lychee_sgl.backend.plans import ChosenPlan
    from lychee_sgl.backend.ranks import Ranks
    from lychee_sgl.config import EngineConfig


PASS_TOKENS = 8192
"""Most tokens that are run again at once where SGLang's prefills have no bound."""


class HybridHeads:
    """The part of the attention backend that the hooks speak to.

    Attributes:
        plan: the head plan in use, of the whole model.
        ranks: which of its heads are here.
        heads: each layer's roles, of this rank's heads.
        all_heads: KV heads of all layers and ranks.
        roots: sets of a row.
        table: what each request slot asked for.
        batch_reqs: the requests of the batch at hand, in the order of its rows.
        serves_rivals: whether a request may name a policy other than the plan.
        correction: the engine's default cache correction, in tokens.
        schedule: what cache correction has to run again.
    """

    serves_rivals = False
    correction = 0
    _uncorrectable = False
    req_to_token_pool: Any

    def set_up(self, runner: Any, chosen: ChosenPlan, config: EngineConfig, device: torch.device, ranks: Ranks) -> None:
        """Takes over plan and settings, once the backend knows SGLang's pools.

        Args:
            runner: SGLang's ModelRunner.
            chosen: the plan in use; it fits the model.
            config: the engine settings.
            device: where the pools are.
            ranks: of the engine; the plan keeps its sets on them.

        Raises:
            RanksDiffer: another rank has another plan or other settings.
        """
        self.plan = chosen.plan
        self.context_window = runner.model_config.context_len
        self.ranks = ranks
        columns = ranks.heads(chosen.plan.model)
        self.heads, self.roots = layer_heads(chosen.plan, columns)
        self.all_heads = len(self.heads) * len(columns) * ranks.size
        self.dense_below = config.resolved_dense_below(device.type)
        self.recall_every = config.recall_every
        self.serves_rivals = config.rival_policies
        self.correction = config.cache_correction
        self._uncorrectable = any(refused for refused, _ in refusals(runner.server_args, runner.model_config))
        self._pass_tokens = max(0, runner.server_args.chunked_prefill_size or 0) or PASS_TOKENS
        slots = runner.req_to_token_pool.req_to_token.shape[0] - 1
        self.table, self.schedule = RowTable(slots, device), Schedule(slots)
        self.batch_reqs: list[Any] | None = None
        ranks.agree(
            {
                "the plan's sha256": chosen.plan.sha256(),
                "LYCHEE_DENSE_BELOW": self.dense_below,
                "LYCHEE_RECALL_EVERY": self.recall_every,
                "LYCHEE_CACHE_CORRECTION": self.correction,
                "the version of lychee-sgl": __version__,
            }
        )

    def batch_has_rivals(self) -> bool:
        """Whether a request of the batch at hand names a policy other than the plan."""
        if not self.serves_rivals or not self.batch_reqs:
            return False
        return bool(self.table.host_policies[[compat.req_pool_index(req) for req in self.batch_reqs]].any())

    def correct(self, forward: Callable[[Any], Any], batch: Any) -> Corrected | None:
        """Runs tokens of a decode batch again that are due for it, before the batch itself (DESIGN.md 11.2).

        Args:
            forward: the model runner's forward pass.
            batch: SGLang's ForwardBatch of the decode step.

        Returns:
            What was run; None where nothing was.
        """
        if not self.schedule.asked or not self.batch_reqs or not batch.forward_mode.is_decode():
            return None
        if not self.schedule.wanted(self.batch_reqs):
            return None
        lengths = (batch.seq_lens if batch.seq_lens_cpu is None else batch.seq_lens_cpu).tolist()
        due = self.schedule.due(self.batch_reqs, lengths[: len(self.batch_reqs)])
        if not due:
            return None
        slots = self.req_to_token_pool.req_to_token
        return correct(forward, batch, due, slots, most=self._pass_tokens, heads=self.all_heads)

    def admit(self, reqs: list[Any], lengths: list[int]) -> None:
        """Writes the row tables for the requests of an extend batch, before it runs (DESIGN.md 3).

        Args:
            reqs: the batch's requests.
            lengths: their contexts once it has run.
        """
        specs = []
        for req in reqs:
            # checked by the engine's HTTP process; who comes another way and asks nonsense gets the default
            try:
                asked = BudgetRequest.from_custom_params(
                    req.sampling_params.custom_params, self.context_window, rivals=self.serves_rivals
                )
                spec = resolve(asked, self.plan.defaults, len(req.origin_input_ids), cache_correction=self.correction)
            except ValueError:
                asked = BudgetRequest()
                spec = resolve(asked, self.plan.defaults, len(req.origin_input_ids), cache_correction=self.correction)
            most = req.sampling_params.max_new_tokens
            if most is not None and most <= 1:  # 0: the common prompt of several choices, which SGLang prefills first
                # Its one token comes out of the prefill, but overlap scheduling has begun a step by then. Run dense,
                # that step leaves the prompt fit for the radix cache: who warms it asks for one token.
                spec = dataclasses.replace(spec, budget=DENSE)
            specs.append(spec)
        slots = [compat.req_pool_index(req) for req in reqs]
        self.table.write(slots, specs, [len(req.origin_input_ids) for req in reqs])
        self.schedule.admit(slots, [0 if self._uncorrectable else s.cache_correction for s in specs], lengths)
