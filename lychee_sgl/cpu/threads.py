"""Threads of the CPU engine: all cores for prefill, one for decode.

A decode step is hundreds of small products; on several threads they wait for each other, and with any other load on the
machine that costs a factor of five and more. A prefill is a few large products and scales.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import torch

from lychee_sgl.config import EngineConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEAST_TOKENS = 64


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs torch on `count` threads for the time of a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prefill_threads() -> int:
    """Gives the threads for prefill: the setting, else the cores this process may use."""
    return EngineConfig.from_env().prefill_threads or len(os.sched_getaffinity(0))


def around_forward(original: Callable[..., Any], runner: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands around the forward pass."""
    if not hasattr(runner, "lychee_prefill_threads"):
        # once: the settings name files, too, and one that is gone by now must not end an engine that runs
        runner.lychee_prefill_threads = prefill_threads()
    large = forward_batch.forward_mode.is_extend() and len(forward_batch.input_ids) >= LEAST_TOKENS
    if not large:
        return original(runner, forward_batch, *args, **kwargs)
    with torch_threads(runner.lychee_prefill_threads):
        return original(runner, forward_batch, *args, **kwargs)
