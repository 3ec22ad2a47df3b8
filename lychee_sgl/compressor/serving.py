"""A trained compressor at work: tokens in, the bytes of embeddings out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from lychee_sgl.compressor.model import load_base, load_compressor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Event

ROWS_ON_A_GPU: Final = 16
"""Windows that are compressed together there; on a CPU one after the other, so that giving up takes effect soon."""


class Stopped(Exception):
    """Nobody waits for it any more."""


class Worker:
    """A model with its compressor, in memory. Not for two threads at once."""

    def __init__(self, folder: Path, model: str, *, device: str, dtype: str) -> None:
        """Loads both; takes seconds.

        Args:
            folder: of the compressor.
            model: folder of the model that it is for, or its name in the local cache.
            device: where to compute.
            dtype: of the embeddings, and of what computes them on a GPU; on a CPU that is float32.

        Raises:
            ValueError: one of them cannot be read, or they do not fit.
        """
        self._dtype: torch.dtype = getattr(torch, dtype)
        on_cpu = torch.device(device).type == "cpu"
        base = load_base(Path(model), device=device, dtype=torch.float32 if on_cpu else self._dtype, head=False)
        self._compressor = load_compressor(folder, base).eval()
        self._rows = 1 if on_cpu else ROWS_ON_A_GPU

    def compress(self, tokens: Sequence[int], ratio: int, stop: Event) -> bytes:
        """Compresses a text of any length, windows together where there is a GPU.

        Args:
            tokens: a multiple of `ratio`, and not none.
            ratio: tokens that an embedding stands for.
            stop: looked at before each part of the work.

        Returns:
            The embeddings, one behind the other.

        Raises:
            Stopped: `stop` was set.
            ValueError: there is no such ratio, or the number of tokens does not do.
        """
        if not tokens or len(tokens) % ratio:
            raise ValueError(f"{len(tokens)} tokens; allowed: a multiple of {ratio}")
        ids = torch.tensor(list(tokens), device=self._compressor.device)
        windows = ids.split(self._compressor.shape.window)
        whole = windows[: len(ids) // self._compressor.shape.window]
        parts = [torch.stack(whole[at : at + self._rows]) for at in range(0, len(whole), self._rows)]
        parts += [window.unsqueeze(0) for window in windows[len(whole) :]]
        made = []
        with torch.inference_mode():
            for part in parts:
                if stop.is_set():
                    raise Stopped
                made.append(self._compressor(part, ratio).flatten(0, 1).to("cpu", self._dtype))
        vectors: bytes = torch.cat(made).contiguous().view(torch.uint8).numpy().tobytes()
        return vectors
