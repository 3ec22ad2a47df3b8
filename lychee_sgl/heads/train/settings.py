"""What a training of gates is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lychee_sgl.heads.train.gated import CHAIN_KINDS, ChainKind
from lychee_sgl.heads.train.gates import GATE_KINDS, GateKind
from lychee_sgl.heads.train.losses import OBJECTIVES, Objective
from lychee_sgl.heads.train.sources import SOURCE_KINDS, SourceKind

if TYPE_CHECKING:
    from lychee_sgl.heads.plan import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Everything that decides what a training computes, apart from model and data.

    Attributes:
        retrieval: retrieval heads of the plan, those of layer 0 included.
        budget: tokens in a set, sinks and recent tokens included; becomes the plan's default.
        sinks: first tokens always kept.
        recent: last tokens always kept.
        gate: distribution of the gates.
        sources: whose set a sparse head reads.
        objective: what the student is held to.
        chain: `deployed`: the sparse branch reads its root's set under this step's roles. `previous`: it reads a fresh
            set of its best source (same index: the layer before), whatever that head's role.
        steps: of the optimiser.
        draws: draws of all gates a step, each a row over the same prompt.
        rate: learning rate of the gates.
        score_rate: learning rate of learned sources' scores.
        warmup: share of the steps in which the rates rise.
        decay: share of the steps in which they fall.
        ramp: share of the steps in which the expected count goes down to `retrieval`.
        constraint_rate: how fast the count's multiplier follows.
        stiffness: how hard the count is held to its target at once.
        clip: largest norm of the gates' gradient.
        reference: samples over which the loss without any gate on is averaged: it is the unit of the loss.
        seed: of the gates' noise.
        recompute: less memory, more time.
    """

    retrieval: int
    budget: int
    sinks: int = 64
    recent: int = 256
    gate: GateKind = "hardkuma"
    sources: SourceKind = "measured"
    objective: Objective = "logits"
    chain: ChainKind = "deployed"
    steps: int = 400
    draws: int = 4
    rate: float = 0.05
    score_rate: float = 0.05
    warmup: float = 0.1
    decay: float = 0.3
    ramp: float = 0.25
    constraint_rate: float = 0.3
    stiffness: float = 50.0
    clip: float = 1.0
    reference: int = 4
    seed: int = 0
    recompute: bool = False

    def check(self, shape: ModelShape) -> None:
        """Refuse what cannot be done with this model.

        Raises:
            ValueError: a setting is out of range; the message names it, its value and what is allowed.
        """
        least, most = shape.num_key_value_heads, shape.num_hidden_layers * shape.num_key_value_heads
        if not least < self.retrieval < most:
            raise ValueError(
                f"retrieval heads is {self.retrieval}; allowed: {least + 1} to {most - 1}, more than layer 0 has and "
                f"fewer than all of {shape}"
            )
        for name in ("budget", "steps", "draws", "reference"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        for name in ("sinks", "recent", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 or more")
        for name in ("rate", "score_rate", "constraint_rate", "stiffness", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: a number above 0")
        for name in ("warmup", "decay", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 to 1")
        kinds = {"gate": GATE_KINDS, "sources": SOURCE_KINDS, "objective": OBJECTIVES, "chain": CHAIN_KINDS}
        for name, allowed in kinds.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")

    def as_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return asdict(self)
