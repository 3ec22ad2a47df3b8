"""What the backend is on every device: a head plan, the row tables, and who is in the batch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lychee_kernels.decode_plan.api import DENSE
from lychee_sgl import compat
from lychee_sgl.backend.plans import layer_heads
from lychee_sgl.backend.request import BudgetRequest, resolve
from lychee_sgl.backend.rows import RowTable

if TYPE_CHECKING:
    import torch

    from lychee_sgl.backend.plans import ChosenPlan
    from lychee_sgl.config import EngineConfig


class HybridHeads:
    """The part of the attention backend that the hooks speak to.

    Attributes:
        plan: the head plan in use.
        heads: each layer's roles.
        roots: sets of a row.
        table: what each request slot asked for.
        batch_reqs: the requests of the batch at hand, in the order of its rows.
        serves_rivals: whether a request may name a policy other than the plan.
    """

    serves_rivals = False

    def set_up(self, runner: Any, chosen: ChosenPlan, config: EngineConfig, device: torch.device) -> None:
        """Takes over plan and settings, once the backend knows SGLang's pools.

        Args:
            runner: SGLang's ModelRunner.
            chosen: the plan in use; it fits the model.
            config: the engine settings.
            device: where the pools are.
        """
        self.plan = chosen.plan
        self.context_window = runner.model_config.context_len
        self.heads, self.roots = layer_heads(chosen.plan)
        self.dense_below = config.resolved_dense_below(device.type)
        self.recall_every = config.recall_every
        self.serves_rivals = config.rival_policies
        self.table = RowTable(runner.req_to_token_pool.req_to_token.shape[0] - 1, device)
        self.batch_reqs: list[Any] | None = None

    def batch_has_rivals(self) -> bool:
        """Whether a request of the batch at hand names a policy other than the plan."""
        if not self.serves_rivals or not self.batch_reqs:
            return False
        return bool(self.table.host_policies[[compat.req_pool_index(req) for req in self.batch_reqs]].any())

    def admit(self, reqs: list[Any]) -> None:
        """Writes the row tables for the requests of an extend batch, before it runs (DESIGN.md 3)."""
        specs = []
        for req in reqs:
            # checked by the engine's HTTP process; who comes another way and asks nonsense gets the default
            try:
                asked = BudgetRequest.from_custom_params(
                    req.sampling_params.custom_params, self.context_window, rivals=self.serves_rivals
                )
                spec = resolve(asked, self.plan.defaults, len(req.origin_input_ids))
            except ValueError:
                spec = resolve(BudgetRequest(), self.plan.defaults, len(req.origin_input_ids))
            if (req.sampling_params.max_new_tokens or 2) <= 1:
                # Its one token comes out of the prefill, but overlap scheduling has begun a step by then. Run dense,
                # that step leaves the prompt fit for the radix cache: who warms it asks for one token.
                spec = dataclasses.replace(spec, budget=DENSE)
            specs.append(spec)
        self.table.write(
            [compat.req_pool_index(req) for req in reqs], specs, [len(req.origin_input_ids) for req in reqs]
        )
