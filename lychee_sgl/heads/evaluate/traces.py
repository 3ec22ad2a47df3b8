"""Traces of a drift run on disk, a file each: a run can be ended, gone on with, and shared by processes."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lychee_sgl.heads.checks import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ASKED = "asked.json"


class Traces:
    """A folder with what was asked and, by number, the traces that are whole."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        """Begin a folder, or go on with it.

        Args:
            folder: made if it is missing.
            asked: JSON values that decide the traces; they must be what the folder says.

        Raises:
            ValueError: the folder holds traces of something else; the message names the field.
            OSError: it cannot be read or written.
        """
        self.folder = folder
        folder.mkdir(exist_ok=True)
        now = json.loads(json.dumps(asked))
        path = folder / ASKED
        if not path.exists():
            write_bytes(path, json.dumps(now, indent=1).encode() + b"\n")
        try:
            was = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no record of what was asked: {error}") from error
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                raise ValueError(f"{folder} holds other traces: {key} was {was.get(key)!r} and is {now.get(key)!r}")

    def get(self, number: int) -> torch.Tensor | None:
        """A finished trace, float64; None if it is not there.

        Raises:
            ValueError: the file is broken.
            OSError: it cannot be read.
        """
        path = self._path(number)
        if not path.exists():
            return None
        try:
            return torch.from_numpy(np.load(path))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no trace ({error}); without it, it is decoded again") from error

    def keep(self, number: int, trace: torch.Tensor) -> None:
        """Write a finished trace; it is there whole or not at all."""
        file = io.BytesIO()
        np.save(file, trace.numpy())
        write_bytes(self._path(number), file.getvalue())

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.npy"
