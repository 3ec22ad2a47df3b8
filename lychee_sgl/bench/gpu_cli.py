"""One call of `lychee-sgl bench gpu`: what is wanted, what an earlier call has, and what is left to measure."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lychee_sgl.bench import gpu, gpu_tokens
from lychee_sgl.bench.machine import describe, device_name
from lychee_sgl.serve.preflight import accelerators

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLACEMENTS = ("random", "balanced", "unbalanced")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a call asks for.

    Attributes:
        model: folder with a `config.json`.
        cases: batches for our engines.
        stock: batches for stock engines, by backend.
        retrieval: retrieval heads of the plans.
        budget: of the plans.
        repeats: how often a batch is timed.
        engine_args: further arguments of SGLang.
        tp: tensor-parallel ranks.
        placements: where the plans' retrieval heads lie.
        tokens: prompts of the comparison with one rank; 0: none.
        against: a measurement on one GPU, or None.
    """

    model: Path
    cases: dict[str, gpu.Case]
    stock: dict[str, dict[str, gpu.Case]]
    retrieval: int
    budget: int
    repeats: int
    engine_args: tuple[str, ...]
    tp: int
    placements: tuple[str, ...]
    tokens: int
    against: Path | None

    def __post_init__(self) -> None:
        for name in self.placements:
            if name not in PLACEMENTS:
                raise ValueError(f"--plans has {name!r}; allowed: {', '.join(PLACEMENTS)}")
        if self.tokens and self.tp == 1:
            raise ValueError("--tokens compares --tp ranks with one; allowed with --tp 2 and more")


def measure(wanted: Wanted, out: Path, *, fresh: bool, say: Callable[[str], None]) -> None:
    """Measures what an earlier call has not, and writes the record after every part.

    Args:
        wanted: what is asked for.
        out: the record.
        fresh: forget what it has.
        say: told of every line.
    """
    state = out.parent / "gpu-bench"
    state.mkdir(parents=True, exist_ok=True)
    here = describe() | {"device": device_name(accelerator=True)}
    before: dict[str, Any] = json.loads(out.read_text()) if out.exists() and not fresh else {}
    compared = before.get("tokens")

    def save(record: dict[str, Any]) -> None:
        kept = left_of(record, wanted.against)
        parts = {**record, **here, **({"tokens": compared} if compared else {}), **({"kept": kept} if kept else {})}
        out.write_text(json.dumps(parts, indent=1) + "\n")

    record = gpu.run(
        state, model=wanted.model, cases=wanted.cases, stock_cases=wanted.stock, retrieval=wanted.retrieval,
        budget=wanted.budget, engine_args=wanted.engine_args, environ={}, repeats=wanted.repeats, say=say, save=save,
        tp=wanted.tp, placements=wanted.placements, done=before,
    )  # fmt: skip
    asked = (wanted.tokens, wanted.tp)
    if wanted.tokens and (not compared or (compared["prompts"], compared["tp"]) != asked):
        gpus = bool(accelerators(os.environ))
        compared = {"prompts": wanted.tokens} | gpu_tokens.run(
            state,
            tp=wanted.tp,
            stock="flashinfer" if gpus else "torch_native",
            together=gpus,
            sizes=gpu_tokens.Sizes() if gpus else gpu_tokens.TINY,
            prompts=wanted.tokens,
            longest=6000 if gpus else 700,
            engine_args=gpu_tokens.GPU_ARGS if gpus else (),
            say=say,
        )
        say(f"tokens: {json.dumps(compared)}")
    save(record)


def left_of(record: dict[str, Any], against: Path | None) -> dict[str, dict[str, float]]:
    """How much of one GPU's speedup is left on several: by engine and batch, 1 is all of it."""
    if against is None:
        return {}
    one = json.loads(against.read_text())["lychee"]["batches"]
    return {
        key: {
            name: line["speedup"] / one[name]["speedup"]
            for name, line in part["batches"].items()
            if name in one and "speedup" in line
        }
        for key, part in record.items()
        if key.startswith("lychee") and isinstance(part, dict) and "batches" in part
    }
