"""The only module that knows in what SGLang 0.5.17 and 0.5.23 differ."""

from __future__ import annotations

import functools
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from sglang.srt.layers.radix_attention import RadixAttention

OLDEST = (0, 5, 17)
NEWEST = (0, 5, 23)


@functools.cache
def sglang_version() -> tuple[int, ...]:
    """Gives the installed SGLang's version as three numbers, whatever stands behind them (`rc1`, `.post1`).

    Looked up once: a scheduler asks with every answer that ends.
    """
    return tuple(int(number) for number in re.findall(r"\d+", version("sglang"))[:3])


def check_version() -> None:
    """Refuses an SGLang that is older than any we have run on.

    Raises:
        RuntimeError: the version is too old; newer ones than tested are let through with what is known.
    """
    found = sglang_version()
    if found < OLDEST:
        raise RuntimeError(
            f"SGLang {'.'.join(map(str, found))} is too old: lychee-sgl needs {'.'.join(map(str, OLDEST))}"
        )


def req_pool_index(req: Any) -> int:
    """Gives a request's slot: 0.5.17 keeps it on the request, 0.5.23 on `req.kv`."""
    index = getattr(req, "req_pool_idx", None)
    return int(req.kv.req_pool_idx if index is None else index)


def keep_out_of_radix_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Rewrites the arguments of `release_kv_cache(req, tree_cache, ...)` so that nothing is inserted.

    0.5.17 calls the switch `is_insert` (third, positional or by name), 0.5.23 `checkpoint` (by name only).
    """
    name = "is_insert" if sglang_version() < (0, 5, 18) else "checkpoint"
    return args[:2], {**kwargs, name: False}


def keep_prompt(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Puts a prompt into the radix cache, as SGLang does after the prefill of a request that goes on.

    Takes the arguments of `release_kv_cache(req, tree_cache, ...)`, and does nothing where that would insert nothing.
    0.5.23 has no call for it: there a prompt whose first token is its last is not kept.
    """
    named = dict(zip(("req", "tree_cache", "is_insert"), args, strict=False)) | kwargs
    insert = named.get("is_insert", named.get("checkpoint", True))
    keep = getattr(named["tree_cache"], "cache_unfinished_req", None)
    if insert and keep is not None:
        keep(named["req"])


def share_embeddings(req: Any) -> None:
    """Lets the KV of a request with embeddings of its own into the radix cache, and out of it.

    0.5.17 puts it in, whatever the embeddings are; 0.5.23 does not, unless it is told.
    """
    if hasattr(req, "skip_radix_cache_insert"):
        req.skip_radix_cache_insert = False


def write_kv(pool: Any, layer: RadixAttention, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Writes keys and values of new tokens into the pool of a model without sliding windows.

    A pool of eight bits divides them by the layer's scales first, in place.
    """
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    pool.set_kv_buffer(layer, KVWriteLoc(slots, None), k, v, layer.k_scale, layer.v_scale)


def kv_scales(layer: RadixAttention) -> tuple[float, float]:
    """Gives what a pool of eight bits has to be multiplied with, keys and values; SGLang keeps it on the host, too."""
    scales = (layer.k_scale_float, layer.v_scale_float)
    return scales[0] or 1.0, scales[1] or 1.0


def loses_scales(layers: Iterable[RadixAttention]) -> bool:
    """Tells whether SGLang's ragged prefill would read a cached prefix of eight bits without its layer's scales.

    0.5.17 does, beside new tokens; its paged prefill, and 0.5.23, do not.
    """
    return sglang_version() < NEWEST and any(kv_scales(layer) != (1.0, 1.0) for layer in layers)
