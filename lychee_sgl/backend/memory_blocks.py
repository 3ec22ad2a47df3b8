"""The engine's compressor: which one, whether it can be served, and its work in a thread (DESIGN.md 13.1)."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lychee_sgl.compressor.fingerprint import parameters_of_folder, weights_of_folder
from lychee_sgl.compressor.folder import READER, Described, check_base, describe, find_own, find_shipped
from lychee_sgl.config import ConfigError
from lychee_sgl.memory.model import ModelFailed

if TYPE_CHECKING:
    from lychee_sgl.compressor.serving import Worker
    from lychee_sgl.config import EngineConfig

log = logging.getLogger(__name__)

_SHAPE: Final = {"hidden": "hidden_size", "vocabulary": "vocab_size", "layers": "num_hidden_layers"}
_OTHER_CACHES: Final = ("hicache_storage_backend", "enable_lmcache", "enable_flexkv", "radix_cache_backend")
"""Arguments of caches that tell pages apart by token ids alone."""
_CPP_TREE: Final = "SGLANG_EXPERIMENTAL_CPP_RADIX_TREE"


def choose_compressor(config: EngineConfig, args: Any, model_config: Any) -> Described | None:
    """Chooses the compressor: the given folder, else the one in the model's, else the one shipped for it, else none.

    Args:
        config: the engine's settings.
        args: SGLang's arguments.
        model_config: SGLang's account of the model.

    Raises:
        ConfigError: the given one cannot be served; one that nobody named is left alone then.
    """
    if config.memory == "off":
        return None
    folder = config.compressor or find_own(args.model_path) or find_shipped(args.model_path, args.served_model_name)
    if folder is None:
        return None
    try:
        return _checked(folder, config, args, model_config)
    except ValueError as error:
        if config.compressor is not None:
            raise ConfigError(str(error)) from error
        log.warning("documents are read without compressed blocks: %s", error)
        return None


def _checked(folder: Path, config: EngineConfig, args: Any, model_config: Any) -> Described:
    """Reads a compressor and holds it against model and engine.

    Raises:
        ValueError: it cannot be served; names setting, value and what is allowed.
    """
    try:
        found = describe(folder)
    except ValueError as error:
        raise ValueError(f"LYCHEE_COMPRESSOR: {error}") from error
    wanted = {name: getattr(model_config.hf_text_config, field, None) for name, field in _SHAPE.items()}
    shape = {name: getattr(found.shape, name) for name in _SHAPE}
    if shape != wanted:
        raise ValueError(f"LYCHEE_COMPRESSOR is {folder}, for {_told(shape)}; allowed: one for {_told(wanted)}")
    try:
        doubt = check_base(folder, found.base, args.model_path, weights_of_folder(args.model_path))
    except ValueError as error:
        raise ValueError(f"LYCHEE_COMPRESSOR: {error}") from error
    if doubt:
        log.warning("LYCHEE_COMPRESSOR: %s", doubt)
    if found.has_reader:
        raise ValueError(
            f"LYCHEE_COMPRESSOR is {folder}, whose reader has an adapter ({READER}/) that {args.model_path} has not; "
            "allowed: a model with it in its weights, as `lychee-sgl compressor merge` makes one"
        )
    if config.compressor_ratio is not None and config.compressor_ratio not in found.shape.ratios:
        allowed = ", ".join(map(str, found.shape.ratios))
        raise ValueError(f"LYCHEE_COMPRESSOR_RATIO is {config.compressor_ratio}, allowed with {folder}: {allowed}")
    for field in (*_OTHER_CACHES, "revision"):
        value = getattr(args, field, None)
        if value:
            flag = f"--{field.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise ValueError(f"LYCHEE_COMPRESSOR is {folder}, allowed with {flag}: none")
    if os.environ.get(_CPP_TREE, "").lower() in ("1", "true", "yes", "y"):
        raise ValueError(f"LYCHEE_COMPRESSOR is {folder}, allowed with {_CPP_TREE}: none")
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"LYCHEE_COMPRESSOR is {folder}, allowed without peft: none (pip install 'lychee-sgl[train]')")
    return found


def announce(found: Described, *, model: str, device: str, dtype: str) -> None:
    """Says at the start what the first compressed block will load, for that is beside SGLang's own share.

    Args:
        found: the compressor.
        model: folder of the model, or its name.
        device: where blocks are compressed.
        dtype: of the engine's embeddings, as torch names it.
    """
    size = needed_bytes(found, model=model, device=device, dtype=dtype)
    room = "" if device == "cpu" else "; leave room for it (--mem-fraction-static), or set LYCHEE_COMPRESSOR_DEVICE=cpu"
    log.info(
        "documents can be read as compressed blocks (%s): the first one loads %s on %s in the HTTP process%s",
        found.folder, "the model once more" if size is None else f"{size / (1 << 30):.2f} GiB of weights", device, room,
    )  # fmt: skip


def needed_bytes(found: Described, *, model: str, device: str, dtype: str) -> int | None:
    """Gives the bytes of the weights that compressing loads: the model's without its output head, and the compressor's.

    Args as `announce`; None where the model's files do not tell.
    """
    count = parameters_of_folder(model)
    wide = device == "cpu" or dtype == "float32"  # a CPU computes in float32, whatever the engine does
    return None if count is None else count * (4 if wide else 2) + found.bytes


def _told(shape: dict[str, int | None]) -> str:
    return ", ".join(f"{name} {number}" for name, number in shape.items())


class EngineCompressor:
    """The compressor of one engine; loaded with the first block."""

    def __init__(
        self, described: Described, *, model: str, device: str, dtype: str, threads: int | None = None
    ) -> None:
        """Looks at the model's files, and loads nothing.

        Args:
            described: the compressor.
            model: folder of the model, or its name.
            device: where to compute.
            dtype: of the engine's embeddings, as torch names it.
            threads: of a CPU; None: one for each core. An engine's environment says one, which is for its decode steps.
        """
        self._described, self._model, self._device, self._dtype = described, model, device, dtype
        self._threads = threads or len(os.sched_getaffinity(0))
        self._identity = json.dumps([described.sha256, files_of(Path(model)), dtype])
        # one thread: a block at a time, and what was given up ends before the next begins
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lychee-compressor")
        self._worker: Worker | None = None

    @property
    def identity(self) -> str:
        """Compressor, model and dtype."""
        return self._identity

    @property
    def vector_bytes(self) -> int:
        """What one embedding takes."""
        return self._described.shape.hidden * (4 if self._dtype == "float32" else 2)

    async def compress(self, tokens: list[int], ratio: int) -> bytes:
        """Compresses tokens, as `lychee_sgl.memory.blocks.Compressor` says."""
        stop = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, tokens, ratio, stop)
        finally:
            stop.set()

    def close(self) -> None:
        """Ends the thread, when the windows in work are done."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, tokens: list[int], ratio: int, stop: threading.Event) -> bytes:
        from lychee_sgl.compressor.serving import Worker
        from lychee_sgl.cpu.threads import torch_threads

        try:
            if self._worker is None:
                log.info("loading the compressor %s on %s", self._described.folder, self._device)
                self._worker = Worker(self._described.folder, self._model, device=self._device, dtype=self._dtype)
            with torch_threads(self._threads):
                return self._worker.compress(tokens, ratio, stop)
        except (ImportError, OSError, RuntimeError, ValueError) as error:  # no memory left is a RuntimeError of torch
            raise ModelFailed(f"it could not be compressed: {error}") from error


def files_of(model: Path) -> object:
    """What tells a model's weights from those that may stand in its place later; quick."""
    if not model.is_dir():
        return str(model)
    kinds = (".json", ".safetensors", ".bin")
    files = sorted(path for path in model.iterdir() if path.suffix in kinds)
    return [str(model.resolve()), [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]]
