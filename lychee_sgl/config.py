"""Settings of the engine side, read once from the environment (DESIGN.md section 5)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lychee_sgl.memory.gate import Gate

DENSE_BELOW_GPU = 4096
# Below this a step costs the same either way; docs/measurements/cpu-speed.json has the curve.
DENSE_BELOW_CPU = 1024
BANK_BYTES = 2**30
BLOCKS_BYTES = 2**32
MOST_CORRECTION = 1024
"""Largest distance between two cache corrections, in tokens."""


class ConfigError(ValueError):
    """A setting has a value that is not allowed."""


def _setting(variable: str, default: str, meaning: str) -> dict[str, str]:
    return {"variable": variable, "default": default, "meaning": meaning}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the plug-in is told from outside. Each field's metadata is its row of DESIGN.md's table."""

    heads: Path | None = field(
        default=None, metadata=_setting("LYCHEE_HEADS", "built-in or heuristic", "path of a head plan")
    )
    dense_below: int | None = field(
        default=None,
        metadata=_setting(
            "LYCHEE_DENSE_BELOW",
            f"{DENSE_BELOW_GPU} on a GPU, {DENSE_BELOW_CPU} on a CPU",
            "contexts up to this length run dense",
        ),
    )
    recall_every: int = field(
        default=32,
        metadata=_setting("LYCHEE_RECALL_EVERY", "32", "one decode step in so many is audited; 0: none"),
    )
    prefill_threads: int | None = field(
        default=None,
        metadata=_setting("LYCHEE_PREFILL_THREADS", "all cores", "CPU only: threads for prefill (decode uses one)"),
    )
    rival_policies: bool = field(
        default=False,
        metadata=_setting("LYCHEE_RIVAL_POLICIES", "0", "1: requests may name a policy of section 11, for evaluation"),
    )
    cache_correction: int = field(
        default=0,
        metadata=_setting(
            "LYCHEE_CACHE_CORRECTION",
            "0",
            "decoded tokens after which they are run again densely; 0: never",
        ),
    )
    memory: str = field(
        default="ask",
        metadata=_setting(
            "LYCHEE_MEMORY",
            "`ask`",
            "documents are read block by block (13): `ask`, where a request wants it; `auto`, also where one does not "
            "fit the window and says nothing; `off`, never",
        ),
    )
    memory_gate: Gate | None = field(
        default=None,
        metadata=_setting(
            "LYCHEE_MEMORY_GATE",
            "none",
            "which blocks are skipped unread (13): a least gain, a gate file, or the name of a shipped gate",
        ),
    )
    memory_oracle: bool = field(
        default=False,
        metadata=_setting("LYCHEE_MEMORY_ORACLE", "0", "1: requests may bring an oracle gate (13), for measurements"),
    )
    memory_bank: Path | None = field(
        default=None,
        metadata=_setting(
            "LYCHEE_MEMORY_BANK", "`lychee-sgl/memory.sqlite` in the user's cache", "file of the finished steps (13)"
        ),
    )
    memory_bank_bytes: int = field(
        default=BANK_BYTES,
        metadata=_setting("LYCHEE_MEMORY_BANK_BYTES", str(BANK_BYTES), "most bytes of the bank's rows; 0: no bank"),
    )

    compressor: Path | None = field(
        default=None,
        metadata=_setting(
            "LYCHEE_COMPRESSOR",
            "the one in the model's folder, or shipped for it, if any",
            "folder of a trained compressor: `compressed` can be asked for (13.1)",
        ),
    )
    compressor_ratio: int | None = field(
        default=None,
        metadata=_setting(
            "LYCHEE_COMPRESSOR_RATIO",
            "4, else its next lower or its lowest",
            "tokens that an embedding stands for, where a request says nothing (13.1)",
        ),
    )
    compressor_device: str | None = field(
        default=None,
        metadata=_setting(
            "LYCHEE_COMPRESSOR_DEVICE", "the engine's", "where blocks are compressed: `cpu`, `cuda`, `cuda:1` (13.1)"
        ),
    )
    memory_blocks_bytes: int = field(
        default=BLOCKS_BYTES,
        metadata=_setting(
            "LYCHEE_MEMORY_BLOCKS_BYTES",
            str(BLOCKS_BYTES),
            "most bytes of compressed blocks, kept beside the bank; 0: none are kept (13.1)",
        ),
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> EngineConfig:
        """Reads the settings.

        Args:
            environ: where to read from; the process's environment by default. Empty values count as not set.

        Raises:
            ConfigError: a value is not allowed; the message names variable, value and what is allowed.
        """
        environ = os.environ if environ is None else environ
        given = {
            f.name: environ[f.metadata["variable"]].strip()
            for f in fields(cls)
            if environ.get(f.metadata["variable"], "").strip()
        }
        return cls(
            heads=_path(given.get("heads")),
            dense_below=_whole("LYCHEE_DENSE_BELOW", given.get("dense_below"), 0),
            recall_every=_whole("LYCHEE_RECALL_EVERY", given.get("recall_every", "32"), 0) or 0,
            prefill_threads=_whole("LYCHEE_PREFILL_THREADS", given.get("prefill_threads"), 1),
            cache_correction=_whole("LYCHEE_CACHE_CORRECTION", given.get("cache_correction"), 0, MOST_CORRECTION + 1)
            or 0,
            rival_policies=_switch("LYCHEE_RIVAL_POLICIES", given.get("rival_policies", "0")),
            memory=_one_of("LYCHEE_MEMORY", given.get("memory", "ask"), ("ask", "auto", "off")),
            memory_gate=_gate("LYCHEE_MEMORY_GATE", given["memory_gate"]) if "memory_gate" in given else None,
            memory_oracle=_switch("LYCHEE_MEMORY_ORACLE", given.get("memory_oracle", "0")),
            memory_bank=_path(given.get("memory_bank")),
            memory_bank_bytes=_bytes("LYCHEE_MEMORY_BANK_BYTES", given.get("memory_bank_bytes"), BANK_BYTES),
            compressor=_path(given.get("compressor")),
            compressor_ratio=_whole("LYCHEE_COMPRESSOR_RATIO", given.get("compressor_ratio"), 2),
            compressor_device=_device("LYCHEE_COMPRESSOR_DEVICE", given.get("compressor_device")),
            memory_blocks_bytes=_bytes("LYCHEE_MEMORY_BLOCKS_BYTES", given.get("memory_blocks_bytes"), BLOCKS_BYTES),
        )

    def resolved_dense_below(self, device: str) -> int:
        """Gives `dense_below` for a device type ("cpu", "cuda")."""
        if self.dense_below is not None:
            return self.dense_below
        return DENSE_BELOW_CPU if device == "cpu" else DENSE_BELOW_GPU

    def resolved_memory_bank(self, environ: Mapping[str, str] | None = None) -> Path:
        """Gives the bank's file: the one that was set, else in `$XDG_CACHE_HOME` or `~/.cache`."""
        environ = os.environ if environ is None else environ
        cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return self.memory_bank or cache / "lychee-sgl" / "memory.sqlite"

    def resolved_memory_blocks(self, environ: Mapping[str, str] | None = None) -> Path:
        """Gives the file of compressed blocks, beside the bank's."""
        bank = self.resolved_memory_bank(environ)
        return bank.with_name(f"{bank.stem}-blocks{bank.suffix}")


def _switch(variable: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise ConfigError(f"{variable} is {text!r}, allowed: 0, 1")
    return text == "1"


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None


def _device(variable: str, text: str | None) -> str | None:
    if text is not None and re.fullmatch(r"cpu|cuda(:\d{1,3})?", text) is None:
        raise ConfigError(f"{variable} is {text!r}, allowed: cpu, cuda, cuda: and a number")
    return text


def _bytes(variable: str, text: str | None, default: int) -> int:
    return _whole(variable, str(default) if text is None else text, 0, 2**50) or 0


def _one_of(variable: str, text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise ConfigError(f"{variable} is {text!r}, allowed: {', '.join(allowed)}")
    return text


def _gate(variable: str, text: str) -> Gate:
    from lychee_sgl.memory.gate import GateError, load  # here: most engines read no document

    try:
        return load(text)
    except GateError as error:
        raise ConfigError(f"{variable}: {error}") from error


def _whole(variable: str, text: str | None, low: int, high: int = 2**31) -> int | None:
    if text is None:
        return None
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value < high:
        to = f" to {high - 1}" if high < 2**31 else ""
        raise ConfigError(f"{variable} is {text!r}, allowed: a whole number from {low}{to}")
    return value
