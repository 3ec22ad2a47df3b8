"""One call of `lychee-sgl bench gpu`: what is wanted, what an earlier call has, and what is left to measure."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from lychee_sgl.bench import gpu, gpu_tokens
from lychee_sgl.bench.machine import describe, device_name
from lychee_sgl.serve.preflight import accelerators
from lychee_sgl.serve.supervisor import StartFailed

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
        profiled: say for every batch where the time goes.
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
    profiled: bool = False

    def __post_init__(self) -> None:
        for name in self.placements:
            if name not in PLACEMENTS:
                raise ValueError(f"--plans has {name!r}; allowed: {', '.join(PLACEMENTS)}")
        if self.tokens and self.tp == 1:
            raise ValueError("--tokens compares --tp ranks with one; allowed with --tp 2 and more")
        if self.against is not None:
            _one_gpu(self.against)


def measure(wanted: Wanted, out: Path, *, fresh: bool, say: Callable[[str], None]) -> None:
    """Measures what an earlier call has not, and writes the record after every part.

    Args:
        wanted: what is asked for.
        out: the record.
        fresh: forget what it has.
        say: told of every line.

    Raises:
        StartFailed: a part failed; all others are in the record, and another call goes on with what is missing.
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

    record, failed = gpu.run(
        state, model=wanted.model, cases=wanted.cases, stock_cases=wanted.stock, retrieval=wanted.retrieval,
        budget=wanted.budget, engine_args=wanted.engine_args, environ={}, repeats=wanted.repeats, say=say, save=save,
        tp=wanted.tp, placements=wanted.placements, profiled=wanted.profiled, done=before,
    )  # fmt: skip
    asked = (wanted.tokens, wanted.tp)
    if wanted.tokens and (not compared or (compared["prompts"], compared["tp"]) != asked):
        try:
            compared = _tokens(state, wanted, say)
        except (StartFailed, httpx.HTTPError) as error:
            failed.append(f"tokens: {error}")
    save(record)
    if failed:
        raise StartFailed("; ".join(failed))


def _tokens(state: Path, wanted: Wanted, say: Callable[[str], None]) -> dict[str, Any]:
    gpus = bool(accelerators(os.environ))
    found = {"prompts": wanted.tokens} | gpu_tokens.run(
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
    say(f"tokens: {json.dumps(found)}")
    return found


def _one_gpu(against: Path) -> dict[str, Any]:
    """Reads the batches of a measurement on one GPU.

    Raises:
        ValueError: it is none.
    """
    try:
        found: dict[str, Any] = json.loads(against.read_text())["lychee"]["batches"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--against is {against}; allowed: a JSON of `bench gpu` on one GPU ({error!r})") from error
    return found


def left_of(record: dict[str, Any], against: Path | None) -> dict[str, dict[str, float]]:
    """How much of one GPU's speedup is left on several: by engine and batch, 1 is all of it."""
    if against is None:
        return {}
    one = _one_gpu(against)
    return {
        key: {
            name: line["speedup"] / one[name]["speedup"]
            for name, line in part["batches"].items()
            if name in one and "speedup" in line
        }
        for key, part in record.items()
        if key.startswith("lychee") and isinstance(part, dict) and "batches" in part
    }
