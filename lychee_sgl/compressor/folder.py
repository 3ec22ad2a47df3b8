"""What a compressor's folder says of itself, read without torch: enough to know whether it is for a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final

from lychee_sgl.compressor.settings import CompressorShape

SCHEMA: Final = "lychee-sgl/compressor"
DESCRIPTION: Final = "compressor.json"
WEIGHTS: Final = ("adapter_config.json", "adapter_model.safetensors", "compressor.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A compressor on disk.

    Attributes:
        folder: where it is.
        shape: of the compressor, and of the model that it is for.
        sha256: of all its files; equal ones make equal blocks.
    """

    folder: Path
    shape: CompressorShape
    sha256: str


def describe(folder: Path) -> Described:
    """Reads a folder's description, and its files' digest.

    Raises:
        ValueError: the folder holds no compressor, or not all of one.
    """
    shape, whole = read_shape(folder), sha256()
    try:
        for name in (DESCRIPTION, *WEIGHTS):
            with (folder / name).open("rb") as file:
                whole.update(file_digest(file, "sha256").digest())
    except OSError as error:
        raise _no_compressor(folder, error) from error
    return Described(folder=folder, shape=shape, sha256=whole.hexdigest())


def read_shape(folder: Path) -> CompressorShape:
    """Reads the shape.

    Raises:
        ValueError: the folder holds no compressor, or one of another version.
    """
    try:
        told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if told["schema"] != SCHEMA or told["version"] != 1:
            raise ValueError(f"schema is {told['schema']}, version {told['version']}")
        fields = told["shape"]
        return CompressorShape(**{**fields, "ratios": tuple(fields["ratios"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_compressor(folder, error) from error


def find_shipped(*names: str | None) -> Path | None:
    """Finds the compressor that comes with the package for a model, by the last part of what the model is called."""
    room = Path(__file__).parent / "shipped"
    wanted = [Path(name).name for name in names if name]
    return next((room / name for name in wanted if name and (room / name / DESCRIPTION).is_file()), None)


def _no_compressor(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"compressor is {folder}; allowed: a folder that a training wrote ({error})")
