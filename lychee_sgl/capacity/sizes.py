"""What a model takes, and the GPUs there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.heads.plan import ModelShape

if TYPE_CHECKING:
    from collections.abc import Mapping

GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A decoder as the capacity needs to know it.

    Attributes:
        shape: layers and heads.
        hidden: width of the residual stream.
        intermediate: width of a layer's MLP; of one expert, where there are some.
        vocabulary: tokens.
        tied: one matrix for embedding and output.
        experts: of a layer; 0 for a dense MLP.
        bias: q, k and v have one.
        head_norms: q and k are normed by head.
    """

    shape: ModelShape
    hidden: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    experts: int = 0
    bias: bool = False
    head_norms: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, name: str | None = None) -> ModelSizes:
        """Reads a Hugging Face `config.json` of Llama's, Mistral's or Qwen's kind.

        Raises:
            PlanError: a size of the heads is missing.
            ValueError: another size is missing.
        """
        shape = ModelShape.from_config(config, name=name)
        experts = int(config.get("num_experts") or config.get("num_local_experts") or 0)
        key = "moe_intermediate_size" if experts and "moe_intermediate_size" in config else "intermediate_size"
        for needed in ("hidden_size", key, "vocab_size"):
            if not isinstance(config.get(needed), int):
                raise ValueError(f"model config {needed} is {config.get(needed)!r}, allowed: a whole number above 0")
        kind = str(config.get("model_type", ""))
        return cls(
            shape=shape,
            hidden=config["hidden_size"],
            intermediate=config[key],
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            experts=experts,
            bias=bool(config.get("attention_bias", kind == "qwen2")),
            head_norms=kind.startswith("qwen3"),
        )

    @property
    def parameters(self) -> int:
        """Weights of the whole model, all experts included."""
        shape = self.shape
        queries, kv = (heads * shape.head_dim for heads in (shape.num_attention_heads, shape.num_key_value_heads))
        attention = self.hidden * (2 * queries + 2 * kv)
        attention += (queries + 2 * kv) * self.bias + 2 * shape.head_dim * self.head_norms
        mlp = 3 * self.hidden * self.intermediate * max(1, self.experts) + self.hidden * self.experts
        layers = shape.num_hidden_layers * (attention + mlp + 2 * self.hidden)
        return layers + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def token_bytes(self, tp: int, entry: int = 2) -> int:
        """Bytes of one token's keys and values on one of `tp` ranks."""
        shape = self.shape
        return 2 * shape.num_hidden_layers * max(1, shape.num_key_value_heads // tp) * shape.head_dim * entry


def _model(name: str, kind: str, layers: int, heads: tuple[int, int], sizes: tuple[int, int, int]) -> ModelSizes:
    shape = ModelShape(name, f"{kind}ForCausalLM", layers, *heads, 128)
    return ModelSizes(shape, *sizes, head_norms=kind == "Qwen3")


MODELS: Final = (
    _model("Llama-3.1-8B", "Llama", 32, (32, 8), (4096, 14336, 128256)),
    _model("Qwen3-8B", "Qwen3", 36, (32, 8), (4096, 12288, 151936)),
    _model("Qwen3-14B", "Qwen3", 40, (40, 8), (5120, 17408, 151936)),
    _model("Qwen3-32B", "Qwen3", 64, (64, 8), (5120, 25600, 151936)),
    _model("Llama-3.1-70B", "Llama", 80, (64, 8), (8192, 28672, 128256)),
)
"""Models of the table, by their published sizes."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: its memory as its driver counts it, in GiB, and its processors."""

    name: str
    memory_gib: float
    processors: int


GPUS: Final = (
    Gpu("RTX 4090", 24.0, 128),
    Gpu("L40S", 45.0, 142),
    Gpu("A100-80GB", 80.0, 108),
    Gpu("H100-80GB", 79.6, 132),
    Gpu("H200", 140.4, 132),
)
"""The GPUs of the table. Our kernels have run on H100 and H200; of the others only the memory is known."""
