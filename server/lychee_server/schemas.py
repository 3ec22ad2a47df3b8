"""The gateway's own vocabulary on the wire: the request field, the engine's summary, the answer's object."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["topk", "ratio", "threshold", "top_p"]
SelectionPolicy = Literal["plan", "block", "window", "random", "quest", "oracle"]
Memory = Literal["text", "compressed", "off"]
Budget = int | Literal["dense", "auto"]
Reason = Literal["request", "tier", "rule", "auto", "default", "min_recall", "target_itl", "pressure", "dense_below"]

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
MEMORY_KEYS = ("memory", "chunk", "working_memory", "ratio")


class LycheeRequest(BaseModel):
    """How much of the context a request's sparse heads may read. All fields may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Annotated[int, Field(ge=1)] | Literal["dense", "auto"] | None = Field(
        default=None,
        description="Tokens a sparse head may read at each step (1 to the context window), `dense` for all, "
        "`auto` for a share of the prompt. Without it: the default of the engine's head plan.",
    )
    mode: Mode | None = Field(
        default=None, description="How the tokens are chosen; not together with the budget `dense`."
    )
    value: float | None = Field(
        default=None,
        description="The mode's parameter: `ratio` (0, 1], `threshold` (0, 1), `top_p` (0, 1]; none with `topk`.",
    )
    min_recall: float | None = Field(
        default=None,
        description="Instead of a budget: the recall that answers to such prompts shall reach, 0.5 to 0.999. The "
        "gateway holds it with as small a budget as the audits of earlier answers allow.",
    )
    target_itl_ms: float | None = Field(
        default=None,
        description="Instead of a budget: the time a token may take, in milliseconds. The largest budget that meets "
        "it, by the engine's speed curve.",
    )
    policy: SelectionPolicy | None = Field(
        default=None,
        description="For evaluation: another way to choose the tokens. Refused by engines that do not serve it.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        default=None, description="Of the policy `random`: the same seed draws the same tokens again."
    )

    cache_correction: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        default=None,
        description="Decoded tokens after which they are run again densely and their keys and values replaced; 0: "
        "never. Without it: the engine's default.",
    )

    memory: Memory | None = Field(
        default=None,
        description="Chats only. `text`: a document of any length is read block by block, and answered from notes. "
        "`compressed`: the same over embeddings that stand for the blocks, where the engine has a compressor. "
        "`off`: it is not, whatever the engine does with documents beyond its window.",
    )
    chunk: int | None = Field(default=None, ge=64, description="With `memory`: most tokens of a block.")
    working_memory: int | None = Field(default=None, ge=32, description="With `memory`: most tokens of the notes.")
    ratio: int | None = Field(
        default=None, ge=2, description="With `memory` `compressed`: tokens that an embedding stands for."
    )

    BESIDES: ClassVar[tuple[str, ...]] = ("policy", "seed", "cache_correction", *MEMORY_KEYS)
    """What goes to the engine as it is, whoever decides on the budget."""

    def besides(self) -> dict[str, Any]:
        """Return what is asked for beside a budget."""
        return self.model_dump(include={*self.BESIDES}, exclude_none=True)

    def budget_alone(self) -> LycheeRequest:
        """Return the request without what it asks for beside a budget."""
        return self.model_copy(update=dict.fromkeys(self.BESIDES)) if self.besides() else self


class MemoryAnswer(BaseModel):
    """How a document was read."""

    mode: str
    chunk: Count = Field(description="most tokens of a block")
    working_memory: Count = Field(description="most tokens of the notes")
    document_tokens: Count
    chunks: Count = Field(description="blocks of the document")
    kept: Count = Field(description="blocks that gave notes")
    skipped: Count = Field(description="blocks that gave none")
    gated: Count = Field(default=0, description="of these, blocks that the gate skipped: nothing was quoted from them")
    tokens_read: Count = Field(description="prompt tokens of all steps")
    cached_tokens: Count = Field(description="of these, whose KV was there already")
    banked_steps: Count = Field(description="steps that an earlier request had finished")
    retries: Count = Field(description="steps that were tried again")
    second_pass: bool = Field(description="whether skipped blocks were read again")
    seconds: Finite = Field(description="from the request to the answer's first token, about")
    ratio: Count | None = Field(default=None, description="tokens that an embedding stood for, of compressed blocks")
    compressed_blocks: Count | None = Field(default=None, description="blocks that were compressed for this answer")


class LycheeAnswer(BaseModel):
    """What a request really ran with. Fractions are null when no decode step ran (or none was audited)."""

    budget: int | Literal["dense"] | None = Field(description="budget in force at the end; null: without bound")
    mode: str | None = Field(description="how the tokens were chosen")
    reason: Reason = Field(description="where the budget came from")
    rule: str | None = Field(default=None, description="name of the policy's rule that gave it")
    tier: str | None = Field(default=None, description="the caller's tier")
    policy: str | None = Field(default=None, description="the policy that chose the tokens, where one was named")
    cache_correction: int | None = Field(default=None, description="its distance in tokens, where there was any")
    context_tokens: int = Field(description="length of the context at the end")
    attended_fraction: float | None = Field(description="KV entries read over those that dense decoding reads")
    recall: float | None = Field(description="attention mass inside the sparse heads' sets, mean of audited steps")
    dense_fallback: str | None = Field(description="why the last dense step ran dense, if any did")
    memory: MemoryAnswer | None = Field(default=None, description="how a document was read, where one was")

    def on_the_wire(self) -> dict[str, Any]:
        """Return the answer's object `lychee`; what may be absent is in it where there is any."""
        absent = {key for key in ("rule", "tier", "policy", "cache_correction", "memory") if getattr(self, key) is None}
        told = self.model_dump(exclude=absent)
        return told if self.memory is None else told | {"memory": self.memory.model_dump(exclude_none=True)}


class EngineSummary(BaseModel):
    """The engine's account of one answer, as it arrives in the answer's `lychee` object."""

    budget: int | Literal["dense"] | None
    mode: str | None
    context_tokens: Count  # prompt and answer; of several choices, the longest
    attended_tokens: Count
    dense_tokens: Count
    decode_steps: Count
    sparse_steps: Count
    attended_fraction: Finite | None
    recall: Finite | None
    recall_steps: Count = 0
    dense_fallback: str | None
    queue_seconds: Finite | None
    mean_batch: Finite | None = None
    decode_seconds: Finite | None = None  # added up over the choices; None: the engine takes no times
    engine_seconds: Finite | None = None
    policy: str | None = None  # None: the head plan
    memory: MemoryAnswer | None = None
    cache_correction: Count = 0
    corrected_tokens: Count = 0
    correction_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class PlanInfo(BaseModel):
    """Which head plan the engine runs with."""

    name: str
    method: str
    heuristic: bool
    sha256: str | None = None


class PlanAuto(BaseModel):
    """What `auto` is: a share of the prompt, within limits."""

    fraction: Annotated[float, Field(gt=0, le=1)] = 0.125
    min: Annotated[int, Field(ge=1)] = 512
    max: Annotated[int, Field(ge=1)] = 4096

    def at(self, prompt_tokens: int) -> int:
        """Return the budget for a prompt, as the engine resolves it."""
        return max(self.min, min(self.max, math.ceil(prompt_tokens * self.fraction)))


class PlanDefaults(BaseModel):
    """What a request gets that asks for nothing."""

    budget: Budget | None
    mode: Mode
    value: float | None = None
    auto: PlanAuto = PlanAuto()


class MemoryInfo(BaseModel):
    """How the engine reads documents beyond its window."""

    modes: tuple[str, ...]
    default: str
    ratios: tuple[int, ...] = ()


class SparsityInfo(BaseModel):
    """The part of `GET /lychee/info` that the gateway needs."""

    plan: PlanInfo
    defaults: PlanDefaults
    context_window: Annotated[int, Field(ge=1)]
    # To tell whether a speed curve was measured on this engine; each may be unknown.
    model: str | None = None
    device: str | None = None
    version: str | None = None
    sglang: str | None = None
    dense_below: int | None = None
    memory: MemoryInfo | None = None
