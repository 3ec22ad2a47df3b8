"""Timing of captured work with device events."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def capture(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Captures work in a CUDA graph, after it has run once to compile."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def time_graphs(graphs: dict[str, torch.cuda.CUDAGraph], repeats: int = 20) -> dict[str, dict[str, float]]:
    """Times graphs in turns, so that a drift of the clocks meets all of them.

    Returns:
        For each graph median, 10th and 90th percentile, in microseconds.
    """
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for graph in graphs.values():
        for _ in range(3):
            graph.replay()
    for _ in range(repeats):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            taken[name].append(start.elapsed_time(end) * 1000)
    return {
        name: {
            "median_us": statistics.median(times),
            "p10_us": sorted(times)[len(times) // 10],
            "p90_us": sorted(times)[len(times) * 9 // 10],
        }
        for name, times in taken.items()
    }


def kernel_times(graph: torch.cuda.CUDAGraph) -> dict[str, dict[str, float]]:
    """Profiles one replay: for each kernel how often it ran and how long in all, in microseconds."""
    from torch.profiler import ProfilerActivity, profile

    graph.replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        graph.replay()
        torch.cuda.synchronize()
    kernels: dict[str, dict[str, float]] = {}
    for event in profiler.key_averages():
        kernels[event.key[:80]] = {"count": event.count, "us": event.self_device_time_total}
    return kernels


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a large copy on this device."""
    source = torch.empty(2**31, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    graph = capture(lambda: target.copy_(source))
    return 2 * 4 * 2**31 / (time_graphs({"copy": graph})["copy"]["median_us"] * 1e-6)
