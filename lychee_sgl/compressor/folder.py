"""What a compressor's folder says of itself, read without torch: enough to know whether it is for a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final

from lychee_sgl.compressor.settings import CompressorShape

SCHEMA: Final = "lychee-sgl/compressor"
DESCRIPTION: Final = "compressor.json"
READER: Final = "reader"
"""Name of the reader's adapter, and of its folder in a compressor's."""
OWN: Final = "compressor"
"""Folder of a compressor in that of the model it is for."""
RATIO: Final = 4
"""Tokens that an embedding stands for, where nobody says and the compressor can."""
WEIGHTS: Final = ("adapter_config.json", "adapter_model.safetensors", "compressor.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The model that a compressor was trained on.

    Attributes:
        model: its name.
        weights: what tells its weights, as `fingerprint` has it.
    """

    model: str
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A compressor on disk.

    Attributes:
        folder: where it is.
        shape: of the compressor, and of the model that it is for.
        base: the model that it was trained on; None: a folder from before that was noted.
        has_reader: whether it was trained with a reader's adapter that lies beside it.
        sha256: of all its files; equal ones make equal blocks.
        bytes: that its own weights take.
    """

    folder: Path
    shape: CompressorShape
    base: Base | None
    has_reader: bool
    sha256: str
    bytes: int

    @property
    def ratio(self) -> int:
        """The one that is taken where nobody says any: 4, else the next lower that there is, else the lowest."""
        ratios = self.shape.ratios
        return max((ratio for ratio in ratios if ratio <= RATIO), default=ratios[0])


def describe(folder: Path) -> Described:
    """Reads a folder's description, and its files' digest.

    Raises:
        ValueError: the folder holds no compressor, or not all of one.
    """
    (shape, base), whole, size = read_description(folder), sha256(), 0
    try:
        for name in (DESCRIPTION, *WEIGHTS):
            with (folder / name).open("rb") as file:
                whole.update(file_digest(file, "sha256").digest())
                size += file.tell()
    except OSError as error:
        raise no_compressor(folder, error) from error
    return Described(
        folder=folder, shape=shape, base=base, has_reader=(folder / READER).is_dir(),
        sha256=whole.hexdigest(), bytes=size,
    )  # fmt: skip


def read_description(folder: Path) -> tuple[CompressorShape, Base | None]:
    """Reads the shape, and the model that it was trained on.

    Raises:
        ValueError: the folder holds no compressor, or one of another version.
    """
    try:
        told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if told["schema"] != SCHEMA or told["version"] != 1:
            raise ValueError(f"schema is {told['schema']}, version {told['version']}")
        fields, base = told["shape"], told.get("base")
        shape = CompressorShape(**{**fields, "ratios": tuple(fields["ratios"])})
        return shape, None if base is None else Base(model=str(base["model"]), weights=str(base["weights"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise no_compressor(folder, error) from error


def check_base(folder: Path, base: Base | None, model: str, weights: str | None) -> str | None:
    """Holds a compressor's base against a model.

    Args:
        folder: of the compressor.
        base: that it was trained on, as far as it says.
        model: what is called so.
        weights: of this model; None: they cannot be told from its files.

    Returns:
        A doubt, where one of the two does not say what it is; None: they fit.

    Raises:
        ValueError: it was trained on other weights; names both.
    """
    if base is None:
        return (
            f"{folder} does not say which weights it was trained on (a training notes it now): "
            f"it is taken for a compressor of {model}"
        )
    if weights is None:
        return f"{folder} was trained on {base.model}; whether {model} has its weights shows when they are loaded"
    if weights != base.weights:
        raise ValueError(
            f"{folder} was trained on {base.model} (weights {base.weights}), the model is {model} "
            f"(weights {weights}); allowed: a compressor that was trained on this model"
        )
    return None


def find_shipped(*names: str | None) -> Path | None:
    """Finds the compressor that comes with the package for a model, by the last part of what the model is called."""
    room = Path(__file__).parent / "shipped"
    wanted = [Path(name).name for name in names if name]
    return next((room / name for name in wanted if name and (room / name / DESCRIPTION).is_file()), None)


def find_own(model: str) -> Path | None:
    """Finds the compressor that lies in the folder of a model, where `merge` writes it."""
    folder = Path(model) / OWN
    return folder if (folder / DESCRIPTION).is_file() else None


def open_to_readers(folder: Path) -> None:
    """Gives every file below a compressor's folder the mode of its description: safetensors lets its owner alone read.

    Who serves is often another user than who trained.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            shutil.copymode(folder / DESCRIPTION, file)


def no_compressor(folder: Path, error: object) -> ValueError:
    """The error for a folder that cannot be loaded; the caller raises it."""
    return ValueError(f"compressor is {folder}; allowed: a folder that a training wrote ({error})")
