"""Where the time of a token step goes on each rank: SGLang's own profiler over a few steps of a running batch."""

from __future__ import annotations

import gzip
import json
import re
import time
from typing import TYPE_CHECKING, Any, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PLAIN: Final[dict[str, Any]] = {"verify": False, "trust_env": False}
"""How an engine on this machine is asked: reading certificates, which HTTP has none of, takes longer than a token."""
STEPS: Final = 8
BEFORE: Final = 3
"""Token steps that a batch takes before the profiler starts: its prefill and the first step are others."""
WRITE_SECONDS: Final = 60.0
GROUPS: Final = {
    "all-reduce": re.compile(r"all_?reduce|allreduce|cross_device|nccl", re.IGNORECASE),
    "attention": re.compile(r"attend_kernel|merge_kernel|flashinfer|Batch(?:Decode|Prefill)|MergeStates"),
    "selection": re.compile(r"count_scores|count_weights|compact_kernel"),
    "matrices": re.compile(r"gemm|gemv|nvjet|cutlass|cublas|splitK", re.IGNORECASE),
}
"""Kernels by what they are for, the first that matches; all others are `other`."""
_CATEGORIES: Final = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCH: Final = "cudaGraphLaunch"


class ProfileFailed(RuntimeError):
    """No trace was written, or none that can be read."""


def profile(address: str, body: dict[str, Any], folder: Path, tp: int) -> list[dict[str, Any]]:
    """Profile some token steps of a batch.

    Args:
        address: of the engine, on this machine.
        body: of `/generate`, for the whole batch, with more than `BEFORE + STEPS` tokens to generate.
        folder: for the traces, one a rank.
        tp: ranks.

    Returns:
        For each rank what `digest` says.

    Raises:
        ProfileFailed: a trace is missing.
        httpx.HTTPError: the engine did not answer.
    """
    name, rows, seen, started = f"lychee-{time.time_ns()}", len(body["input_ids"]), 0, False
    asked = {"output_dir": str(folder.absolute()), "num_steps": STEPS, "activities": ["GPU"], "profile_id": name}
    asked |= {"with_stack": False, "record_shapes": False}
    with httpx.stream("POST", f"{address}/generate", json={**body, "stream": True}, timeout=900, **PLAIN) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            seen += line.startswith("data: {")
            if seen >= BEFORE * rows and not started:
                started = True
                httpx.post(f"{address}/start_profile", json=asked, timeout=300, **PLAIN).raise_for_status()
    # the profiler looks at the batches: one more ends it, where the first was over too soon
    ended = {**body, "input_ids": body["input_ids"][:1], "sampling_params": body["sampling_params"][:1]}
    httpx.post(f"{address}/generate", json=ended, timeout=900, **PLAIN).raise_for_status()
    return [digest(_events(folder / f"{name}-TP-{rank}.trace.json.gz")) for rank in range(tp)]


def _events(path: Path) -> list[dict[str, Any]]:
    end = time.monotonic() + WRITE_SECONDS
    while True:
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                found: list[dict[str, Any]] = json.load(file)["traceEvents"]
            return found
        except (OSError, EOFError, ValueError) as error:  # not there yet, or not whole
            if time.monotonic() > end:
                raise ProfileFailed(f"{path.name} cannot be read: {error}") from error
        time.sleep(0.5)


def group_of(kernel: str) -> str:
    """What a kernel is for."""
    return next((name for name, pattern in GROUPS.items() if pattern.search(kernel)), "other")


def digest(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Add up a trace.

    Args:
        events: of a Chrome trace, times in microseconds.

    Returns:
        `steps` (graphs launched), and in milliseconds a step: `span` from the first kernel to the last one's end,
        `busy` while any ran, and the sum over the kernels of each group, which run side by side in part. Without a
        graph, as on a CPU, `steps` is 0 and the times are those of all steps.
    """
    spans, groups, steps = list[tuple[float, float]](), dict.fromkeys([*GROUPS, "other"], 0.0), 0
    for event in events:
        steps += event.get("name", "") == _LAUNCH
        if event.get("cat") in _CATEGORIES and "dur" in event:
            spans.append((event["ts"], event["ts"] + event["dur"]))
            groups[group_of(event["name"]) if event["cat"] == "kernel" else "other"] += event["dur"]
    span = max(end for _, end in spans) - min(begin for begin, _ in spans) if spans else 0.0
    unit = 1000 * max(1, steps)
    return {
        "steps": steps,
        "span_ms": round(span / unit, 4),
        "busy_ms": round(_covered(spans) / unit, 4),
        "groups_ms": {name: round(total / unit, 4) for name, total in groups.items()},
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of some intervals."""
    total, reach = 0.0, -float("inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reach))
        reach = max(reach, end)
    return total
