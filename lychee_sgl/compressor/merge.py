"""From a model and a compressor whose reader has an adapter to one folder that stock SGLang serves.

The reader's adapter goes into the model's weights. The compressor keeps computing what it did: on the merged weights
W + R it needs W + E, so its adapter becomes E - R, of low rank like both. So one set of weights on disk does for the
engine and the compressor, which from then on belongs to the merged model.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from safetensors.torch import save_file

from lychee_sgl.compressor.fingerprint import weights_of_model
from lychee_sgl.compressor.folder import DESCRIPTION, OWN, READER, SCHEMA, WEIGHTS, Base, describe, open_to_readers
from lychee_sgl.compressor.model import PARTS, load_base, load_compressor
from lychee_sgl.heads.checks import write_text
from lychee_sgl.models.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lychee_sgl.compressor.model import Compressor

RECORD: Final = "merge.json"
MERGE_SCHEMA: Final = "lychee-sgl/compressor-merge"

_BOTH: Final = "merged"
_OF_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json", ".md")
"""Ends of files that the merged model has of its own, or that speak of the other one."""


def merge(
    model: Path, folder: Path, out: Path, *, command: str = "", say: Callable[[str], None] = lambda line: None
) -> None:
    """Write a model folder with the reader's adapter in its weights, and in it the compressor for them.

    Args:
        model: folder of the model that the compressor was trained on.
        folder: of the compressor; its reader has an adapter.
        out: of the result; it appears when it is complete.
        command: how this was called.
        say: told what is being done.

    Raises:
        ValueError: there is no adapter of a reader, one of the folders is no such folder, they do not fit, or `out`
            is there.
        OSError: a file cannot be read or written.
    """
    if out.exists():
        raise ValueError(f"out is {out}, which is there; allowed: a new folder")
    if not (folder / READER).is_dir():
        raise ValueError(
            f"compressor is {folder}; allowed: one whose reader has an adapter ({READER}/): without, serve the model "
            "itself"
        )
    if not model.is_dir():
        raise ValueError(f"model is {model}; allowed: a folder that transformers reads")
    start = describe(folder)
    say(f"reading {model}")
    compressor = load_compressor(folder, load_base(model, dtype=None)).eval()
    compressor.add_reader(adapter=folder / READER)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a merge that was killed
    try:
        own = part / OWN
        rank = _save_adapter(compressor, own)
        merged = compressor.model.merge_and_unload(adapter_names=[READER], safe_merge=True)
        say(f"writing {out}")
        _save_model(merged, model, part)
        parts = {name: getattr(compressor, name).detach().cpu().contiguous() for name in PARTS}
        save_file(parts, own / WEIGHTS[-1])
        base = Base(model=out.resolve().name, weights=weights_of_model(merged))
        record = {
            "schema": MERGE_SCHEMA, "version": 1, "date": time.strftime("%Y-%m-%d"), "command": command,
            "model": asdict(compressor.base), "compressor": start.sha256, "base": asdict(base),
        }  # fmt: skip
        write_text(own / RECORD, json.dumps(record, indent=1) + "\n")
        shape = replace(compressor.shape, rank=rank)
        told = {"schema": SCHEMA, "version": 1, "shape": asdict(shape), "base": asdict(base)}
        write_text(own / DESCRIPTION, json.dumps(told, indent=1) + "\n")
        open_to_readers(own)
        for file in part.glob("*.safetensors"):
            shutil.copymode(own / DESCRIPTION, file)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save_adapter(compressor: Compressor, folder: Path) -> int:
    """Writes the compressor's adapter as one on the merged weights; its rank."""
    model = compressor.model
    model.add_weighted_adapter(["default", READER], [1.0, -1.0], _BOTH, combination_type="cat")
    model.save_pretrained(str(folder), selected_adapters=[_BOTH])
    rank: int = model.peft_config[_BOTH].r
    for name in WEIGHTS[:-1]:
        (folder / _BOTH / name).rename(folder / name)
    shutil.rmtree(folder / _BOTH)
    (folder / "README.md").unlink(missing_ok=True)  # a model card without a word of its own
    return rank


def _save_model(merged: Any, model: Path, out: Path) -> None:
    """Writes the weights, and everything else of the model's folder as it is there."""
    merged.save_pretrained(str(out))
    for file in model.iterdir():
        others = file.name.startswith(".") or file.name == MANIFEST_NAME  # which tells digests of the other weights
        if file.is_file() and not others and not file.name.endswith(_OF_WEIGHTS):
            shutil.copyfile(file, out / file.name)
