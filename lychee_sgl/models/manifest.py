"""What a model folder is made of: sizes and SHA-256 sums, written last and checked on every reuse."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MANIFEST_NAME: Final = "lychee-model.json"
SCHEMA: Final = "lychee-sgl/model-folder"
# Files up to this size are hashed on every reuse (some 20 ms in all); bigger ones are compared by size alone.
HASHED_ON_REUSE_BYTES: Final = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Where a model folder came from and what must lie in it.

    Attributes:
        converter: version of the conversion; a folder of another version is made anew.
        source_sha256: sum of the file the folder was made from.
        files: name to (bytes, SHA-256), every file of the folder but the manifest itself.
    """

    converter: int
    source_sha256: str
    files: dict[str, tuple[int, str]]

    def write(self, folder: Path) -> None:
        """Write the manifest into its folder."""
        files = {name: {"bytes": size, "sha256": sha} for name, (size, sha) in sorted(self.files.items())}
        document = {
            "schema": SCHEMA,
            "converter": self.converter,
            "source_sha256": self.source_sha256,
            "files": files,
        }
        (folder / MANIFEST_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe(folder: Path, *, converter: int, source_sha256: str) -> Manifest:
    """Make the manifest of a finished folder by hashing all that lies in it."""
    files = {
        path.name: (path.stat().st_size, sha256_of(path))
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST_NAME
    }
    return Manifest(converter=converter, source_sha256=source_sha256, files=files)


def read(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        ValueError: there is none, or it is not one of ours.
    """
    path = folder / MANIFEST_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema is {document['schema']!r}, expected {SCHEMA!r}")
        files = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in document["files"].items()}
        return Manifest(converter=int(document["converter"]), source_sha256=str(document["source_sha256"]), files=files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable manifest ({error})") from error


def find_fault(folder: Path, *, converter: int, source_sha256: str, every_hash: bool = False) -> str | None:
    """Say what is wrong with a model folder, or None when it can be used.

    Checked are the manifest's origin, the presence and size of every file, and the SHA-256 of files of at most
    16 MiB (configuration and tokenizer).

    Args:
        folder: the folder to look at.
        converter: conversion version it must be of.
        source_sha256: sum of the file it must have been made from.
        every_hash: hash the weights as well (about a second).
    """
    try:
        manifest = read(folder)
    except ValueError as error:
        return str(error)
    if manifest.converter != converter:
        return f"made by conversion {manifest.converter}, this is conversion {converter}"
    if manifest.source_sha256 != source_sha256:
        return "made from another source file"
    for name, (size, sha) in manifest.files.items():
        path = folder / name
        try:
            found = path.stat().st_size
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != size:
            return f"{name} has {found} bytes, the manifest says {size}"
        if (every_hash or size <= HASHED_ON_REUSE_BYTES) and sha256_of(path) != sha:
            return f"{name} has changed (SHA-256 differs)"
    return None
