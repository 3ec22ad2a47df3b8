"""Embeddings on their way into SGLang, and the cache that must not take them for others (DESIGN.md 13.1)."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl import compat

if TYPE_CHECKING:
    from collections.abc import Callable

    from lychee_sgl.memory.model import Inlay

MARK: Final = "lychee-inlay:"
"""Stands in the `extra_key` of a request with embeddings of ours, before what they are."""


def extra_key(own: str | None, secret: str, inlay: Inlay) -> str:
    """Gives the part of the radix cache that only requests with the same embeddings in the same place have.

    Args:
        own: the request's own key, if it has one.
        secret: of this process, so that no client can name the key.
        inlay: the embeddings.
    """
    place = f"{inlay.at} {inlay.count} {secret} ".encode()
    return f"{own or ''}{MARK}{sha256(place + inlay.digest).hexdigest()}"


def overrides(inlay: Inlay, dtype: str) -> Any:
    """Gives embeddings as SGLang takes them.

    Args:
        inlay: of at least one embedding.
        dtype: of its numbers, as torch names it.
    """
    import torch
    from sglang.srt.managers.embed_types import PositionalEmbeds

    # a copy: torch wants bytes that it could write to
    numbers = torch.frombuffer(bytearray(inlay.vectors), dtype=getattr(torch, dtype))
    return PositionalEmbeds(
        embeds=numbers.view(inlay.count, -1), positions=list(range(inlay.at, inlay.at + inlay.count))
    )


def around_next_round(original: Callable[..., Any], req: Any, *args: Any, **kwargs: Any) -> Any:
    """Lets a request with embeddings of ours find its prefix in the radix cache.

    SGLang looks for none, because equal ids can have other embeddings. Under our key they cannot.
    """
    held = req.positional_embed_overrides
    if held is None or MARK not in (req.extra_key or ""):
        return original(req, *args, **kwargs)
    compat.share_embeddings(req)
    req.positional_embed_overrides = None
    try:
        return original(req, *args, **kwargs)
    finally:
        req.positional_embed_overrides = held
