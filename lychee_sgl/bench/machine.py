"""What a measurement has to say of where it was taken."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("lychee-sgl", "sglang", "torch", "triton", "numba", "numpy", "transformers")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this code; a copy without git says it in LYCHEE_COMMIT."""
    if "LYCHEE_COMMIT" in os.environ:
        return os.environ["LYCHEE_COMMIT"]
    try:
        here = Path(__file__).parent
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name(*, accelerator: bool) -> str:
    """Names this machine's NVIDIA GPUs by the first of them, or its CPU and cores.

    Args:
        accelerator: whether the GPUs are asked for; where none can be asked, it is the CPU.
    """
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        found = []
    if accelerator and found:
        return f"{len(found)} x {found[0].strip()}"
    return f"{_cpu_name()}, {len(os.sched_getaffinity(0))} cores"


def describe() -> dict[str, Any]:
    """Gives command, date, commit, machine and versions of this run."""
    return {
        "command": shlex.join(["lychee-sgl", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "load_before": [round(x, 2) for x in os.getloadavg()],
        },
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
    }


def float32_gflops(size: int = 1024, seconds: float = 2.0) -> float:
    """Measures this machine's float32 matrix product on all cores, in GFLOP/s: the best of what fits into the time."""
    import numpy as np  # comes with the engine; the demo uses this module without one

    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    best, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def tree_pss(pid: int) -> int:
    """Adds up the memory of a process and its descendants, in bytes; a shared page counts once (PSS)."""
    root = psutil.Process(pid)
    return sum(int(process.memory_full_info().pss) for process in [root, *root.children(recursive=True)])
