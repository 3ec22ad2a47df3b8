"""What the engine's HTTP process keeps for reading documents, from one request to the next."""

from __future__ import annotations

import logging
import secrets
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.backend.memory_blocks import EngineCompressor
from lychee_sgl.backend.memory_model import dtype_name
from lychee_sgl.memory.bank import Bank
from lychee_sgl.memory.blocks import BlockBank
from lychee_sgl.memory.gate import foreign
from lychee_sgl.memory.split import Refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lychee_sgl.compressor.folder import Described
    from lychee_sgl.config import EngineConfig
    from lychee_sgl.memory.settings import MemoryRequest

log = logging.getLogger(__name__)

_AHEAD_ON_A_GPU: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the HTTP process keeps for reading documents.

    Attributes:
        config: the engine's.
        bank: where steps are kept, if anywhere.
        ahead: blocks that are read at once.
        plan: what of the engine's backend the outcome of a step depends on.
        blocks: where compressed blocks come from; None: the engine has no compressor.
        ratios: that blocks can be compressed at.
        own_ratio: where a request says nothing.
        weights: of the model that the compressor is for, as the engine names them.
        secret: of this process, known to no client.
    """

    config: EngineConfig
    bank: Bank | None
    ahead: int
    plan: object
    blocks: BlockBank | None
    ratios: tuple[int, ...]
    own_ratio: int
    weights: tuple[str | None, str | None]
    secret: str

    @classmethod
    def of(cls, manager: Any, engine: Any) -> Room:
        """Gives the room behind a TokenizerManager; the first call makes it."""
        if not hasattr(manager, "lychee_memory"):
            config: EngineConfig = engine.config
            bank = None
            if config.memory != "off":
                bank = _bank(config.resolved_memory_bank, config.memory_bank_bytes)
            gate = config.memory_gate
            if gate is not None and (doubt := foreign(gate, manager.server_args.model_path, engine.model)):
                log.warning("%s", doubt)
            found: Described | None = engine.compressor
            below = config.resolved_dense_below(engine.device)
            manager.lychee_memory = cls(
                config=config,
                bank=bank,
                ahead=1 if engine.device == "cpu" else _AHEAD_ON_A_GPU,
                plan=[engine.chosen.describe(), below, config.cache_correction],
                blocks=_blocks(manager, engine),
                ratios=() if found is None else found.shape.ratios,
                own_ratio=0 if found is None else config.compressor_ratio or found.ratio,
                weights=engine.weights,
                secret=secrets.token_hex(16),
            )
        room: Room = manager.lychee_memory
        return room

    def ratio(self, asked: MemoryRequest, args: Any) -> int:
        """Gives the ratio that a request's blocks are compressed at.

        Args:
            asked: the request.
            args: SGLang's arguments, as they are now.

        Raises:
            Refused: there is no such ratio, or the compressor is for other weights than those that are served now.
        """
        if (args.model_path, args.weight_version) != self.weights:
            allowed = "'text', 'off'; the compressor is for the weights that the engine began with"
            raise Refused(f"lychee_memory is 'compressed', allowed: {allowed}", "lychee_memory")
        ratio = asked.ratio if asked.ratio is not None else self.own_ratio
        if ratio not in self.ratios:
            allowed = ", ".join(map(str, self.ratios))
            raise Refused(f"lychee_ratio is {ratio}, allowed: {allowed}", "lychee_ratio")
        return ratio


def _blocks(manager: Any, engine: Any) -> BlockBank | None:
    if engine.compressor is None:
        return None
    config: EngineConfig = engine.config
    compressor = EngineCompressor(
        engine.compressor,
        model=manager.server_args.model_path,
        device=config.compressor_device or engine.device,
        dtype=dtype_name(manager),
        threads=config.prefill_threads,
    )
    return BlockBank(compressor, _bank(config.resolved_memory_blocks, config.memory_blocks_bytes))


def _bank(path: Callable[[], Path], most: int) -> Bank | None:
    """Opens a bank; one that cannot be made costs its use, no answer."""
    if not most:
        return None
    try:
        return Bank(path(), most)
    except (OSError, RuntimeError, sqlite3.Error) as error:
        # RuntimeError: a user without a home; a chat that reads no document needs no bank, either
        log.warning("documents are read without a bank: %s", error)
        return None
