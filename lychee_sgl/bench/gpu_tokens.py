"""Do several ranks give one rank's tokens? Asked of stock SGLang and of ours, judged alike.

Dummy weights will not do: SGLang draws them shard by shard, so that two ranks hold another model than one. The weights
here are random too, but lie in a file: a model of Llama's kind with few layers.
"""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from lychee_sgl.bench.gpu import engine, head_plan
from lychee_sgl.bench.gpu_profile import PLAIN
from lychee_sgl.bench.near_ties import TOP, alternatives, near_tie, noise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

BUDGETS: tuple[int | str, ...] = ("dense", 512)
TOKENS = 48
POOL_TOKENS = 32_768
SPREAD = 0.05
"""Standard deviation of the weights: attention is then neither even nor a single token's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The random model: by default as many heads as one may share among four ranks."""

    layers: int = 8
    hidden: int = 1024
    queries: int = 16
    kv_heads: int = 4
    head_dim: int = 128
    intermediate: int = 2816
    vocabulary: int = 16_384

    def config(self) -> dict[str, Any]:
        """Gives the model's `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.queries,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": POOL_TOKENS,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


TINY = Sizes(layers=3, hidden=128, queries=4, kv_heads=2, head_dim=64, intermediate=256, vocabulary=2048)
"""To try the comparison where there is no GPU."""
GPU_ARGS = ("--mem-fraction-static", "0.8", "--cuda-graph-bs-decode", "1", "--disable-prefill-cuda-graph")


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer: its tokens, and the log-probabilities of the best alternatives at each."""

    tokens: list[int]
    best: list[dict[int, float]]


def write_model(folder: Path, sizes: Sizes, seed: int = 0) -> None:
    """Writes `config.json` and random weights, which SGLang takes as bfloat16; the same seed writes the same file."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    width, kv = sizes.queries * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (sizes.vocabulary, sizes.hidden),
        "lm_head.weight": (sizes.vocabulary, sizes.hidden),
        "model.norm.weight": (sizes.hidden,),
    }
    for layer in range(sizes.layers):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.self_attn.q_proj.weight": (width, sizes.hidden),
            f"{name}.self_attn.k_proj.weight": (kv, sizes.hidden),
            f"{name}.self_attn.v_proj.weight": (kv, sizes.hidden),
            f"{name}.self_attn.o_proj.weight": (sizes.hidden, width),
            f"{name}.mlp.gate_proj.weight": (sizes.intermediate, sizes.hidden),
            f"{name}.mlp.up_proj.weight": (sizes.intermediate, sizes.hidden),
            f"{name}.mlp.down_proj.weight": (sizes.hidden, sizes.intermediate),
            f"{name}.input_layernorm.weight": (sizes.hidden,),
            f"{name}.post_attention_layernorm.weight": (sizes.hidden,),
        }
    tensors = {
        name: (rng.standard_normal(shape, dtype=np.float32) * SPREAD if len(shape) > 1 else np.ones(shape)).astype(
            np.float16
        )
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(sizes.config(), indent=1))


def questions(count: int, vocabulary: int, longest: int) -> list[list[int]]:
    """Draws prompts of rising lengths."""
    lengths = [64 + (longest - 64) * i // max(1, count - 1) for i in range(count)]
    return [random.Random(i).choices(range(3, vocabulary), k=length) for i, length in enumerate(lengths)]


def ask(address: str, prompts: list[list[int]], budget: int | str) -> list[Answer]:
    """Asks for greedy answers, one after the other: a batch would add up in an order of its own."""
    answers = []
    for ids in prompts:
        body = {
            "input_ids": ids,
            "sampling_params": {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
            | {"custom_params": {"lychee_budget": budget}},
            "return_logprob": True,
            "top_logprobs_num": TOP,
        }
        response = httpx.post(f"{address}/generate", json=body, timeout=600, **PLAIN)
        response.raise_for_status()
        answer = response.json()
        answers.append(Answer(tokens=answer["output_ids"], best=alternatives(answer["meta_info"])))
    return answers


def judge(one: list[Answer], several: list[Answer], allowed: float | None) -> dict[str, Any]:
    """Compares the answers of one rank with those of several.

    Args:
        one: of one rank.
        several: of several, to the same prompts.
        allowed: the noise below which a gap is a near tie; None takes that of these answers.
    """
    largest = max(noise(a, b) for a, b in zip(one, several, strict=True))
    allowed = largest if allowed is None else allowed
    ties = [near_tie(a, b, allowed) for a, b in zip(one, several, strict=True)]
    return {
        "answers": len(one),
        "identical": sum(tie is None for tie in ties),
        "near_ties": sum(tie is not None and tie[0] for tie in ties),
        "gaps": [round(tie[1], 4) for tie in ties if tie is not None],
        "noise": round(largest, 4),
        "allowed": round(allowed, 4),
    }


def visible_gpu(environ: Mapping[str, str], number: int) -> str:
    """Names one of the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` does."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    return visible.split(",")[number].strip() if visible else str(number)


def run(
    state: Path,
    *,
    tp: int,
    stock: str,
    together: bool,
    sizes: Sizes,
    prompts: int,
    longest: int,
    engine_args: tuple[str, ...],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Asks four engines: stock and ours, on one rank and on several.

    Args:
        state: folder for the model, logs and the plan.
        tp: ranks.
        stock: the dense backend that ours is compared with.
        together: run an engine of each kind at the same time, on GPUs of their own where they have one rank.
        sizes: of the model.
        prompts: how many.
        longest: tokens of the longest.
        engine_args: further arguments of SGLang.
        say: told of every engine.
    """
    model = state / "random-model"
    write_model(model, sizes)
    plan = head_plan(sizes.config(), sizes.layers * sizes.kv_heads // 3, 512, placement="balanced", tp=tp)
    plan.save(state / "tokens-plan.json")
    ids = questions(prompts, sizes.vocabulary, longest)
    args = ("--max-total-tokens", str(POOL_TOKENS), "--context-length", str(POOL_TOKENS), *engine_args)

    def answers(backend: str, ranks: int, gpu: int) -> dict[str, list[Answer]]:
        # two engines at a time find each other's memory in use, which SGLang takes for ranks that differ
        environ = {"SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0"}
        if together and ranks == 1:
            environ["CUDA_VISIBLE_DEVICES"] = visible_gpu(os.environ, gpu)
        if backend == "lychee":
            environ |= {"LYCHEE_HEADS": str(state / "tokens-plan.json"), "LYCHEE_DENSE_BELOW": "0"}
        budgets = BUDGETS if backend == "lychee" else ("dense",)
        with engine(state, model=model, backend=backend, args=args, environ=environ, tp=ranks, weights="auto") as (
            address,
            seconds,
        ):
            say(f"{backend} on {ranks} rank(s) up after {seconds:.0f} s")
            return {str(budget): ask(address, ids, budget) for budget in budgets}

    found: dict[tuple[str, int], dict[str, list[Answer]]] = {}
    for ranks in (1, tp):
        with ThreadPoolExecutor(2 if together else 1) as pool:
            jobs = {name: pool.submit(answers, name, ranks, gpu) for gpu, name in enumerate(("lychee", stock))}
            for name, job in jobs.items():
                found[name, ranks] = job.result()
    stocks = judge(found[stock, 1]["dense"], found[stock, tp]["dense"], None)
    ours = {
        str(budget): judge(found["lychee", 1][str(budget)], found["lychee", tp][str(budget)], stocks["noise"])
        for budget in BUDGETS
    }
    beside = judge(found[stock, tp]["dense"], found["lychee", tp]["dense"], stocks["noise"])
    return {"tp": tp, stock: stocks, "lychee": ours, f"lychee_dense_beside_{stock}": beside}
