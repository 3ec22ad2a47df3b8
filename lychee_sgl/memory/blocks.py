"""Compressed blocks: embeddings that stand for a block's text, and the bank that keeps them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Protocol

from lychee_sgl.memory.bank import key_of

if TYPE_CHECKING:
    from lychee_sgl.memory.bank import Bank
    from lychee_sgl.memory.chunks import Block

VERSION: Final = 1
"""Raised when the same parts give other vectors: those of another version are not reused."""
PLACEHOLDER: Final = 0
"""Stands in a prompt's tokens where an embedding is read; which token it is means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """What a model reads in place of a block's tokens.

    Attributes:
        vectors: embeddings one behind the other, in the model's own dtype.
        count: how many.
        rest: the block's last tokens, which fill none.
        digest: SHA-256 of `vectors`.
    """

    vectors: bytes
    count: int
    rest: tuple[int, ...]
    digest: bytes

    @property
    def placeholders(self) -> tuple[int, ...]:
        """One token for each embedding, then those that are read as they are."""
        return (PLACEHOLDER,) * self.count + self.rest


class Compressor(Protocol):
    """Makes embeddings of tokens, with one model."""

    @property
    def identity(self) -> str:
        """Everything that they depend on, beside tokens and ratio."""

    @property
    def vector_bytes(self) -> int:
        """What one embedding takes."""

    async def compress(self, tokens: list[int], ratio: int) -> bytes:
        """Gives an embedding for every `ratio` tokens, one behind the other; being cancelled ends it soon.

        Args:
            tokens: a multiple of `ratio`, and not none.
            ratio: tokens that an embedding stands for.

        Raises:
            ModelFailed: it may work another time.
        """


class BlockBank:
    """Compressed blocks: those that were kept, and the others made. One for all readings with a compressor."""

    def __init__(self, compressor: Compressor, bank: Bank | None) -> None:
        """Takes the parts; the bank stays the caller's."""
        self._compressor, self._bank = compressor, bank
        self._lock = asyncio.Lock()

    @property
    def identity(self) -> str:
        """The compressor's."""
        return self._compressor.identity

    async def get(self, block: Block, ratio: int, salt: str | None = None) -> tuple[Compressed, bool]:
        """Gives a block compressed, and whether that had to be done now.

        Args:
            block: of a document.
            ratio: tokens that an embedding stands for.
            salt: who has another does not learn, by time or account, that this block was here.

        Raises:
            ModelFailed: it may work another time.
        """
        whole = len(block.tokens) // ratio * ratio
        rest = tuple(block.tokens[whole:])
        if not whole:
            return Compressed(vectors=b"", count=0, rest=rest, digest=sha256().digest()), False
        count = whole // ratio
        key = key_of("block", VERSION, self._compressor.identity, ratio, block.digest, *([salt] if salt else []))
        vectors = await self._find(key, count)
        made = False
        if vectors is None:
            # one at a time; who has waited for the same block finds it
            async with self._lock:
                vectors = await self._find(key, count)
                if vectors is None:
                    made, vectors = True, await self._compressor.compress(list(block.tokens[:whole]), ratio)
                    if self._bank is not None:
                        await self._bank.keep_bytes(key, vectors)
        digest = await asyncio.to_thread(lambda: sha256(vectors).digest())
        return Compressed(vectors=vectors, count=count, rest=rest, digest=digest), made

    async def _find(self, key: bytes, count: int) -> bytes | None:
        found = await self._bank.find_bytes(key) if self._bank is not None else None
        return found if found is not None and len(found) == count * self._compressor.vector_bytes else None
