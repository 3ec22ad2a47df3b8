"""A training's state on disk, whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 1


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write beside the target, force it to disk, then rename: a kill at any moment leaves the old state or the new."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Read a state and refuse another training's.

    Args:
        path: the file.
        identity: what must agree: settings, model and data of the training that goes on.

    Raises:
        ValueError: it is no checkpoint, or a field of its identity differs; the message names field and both values.
        OSError: it cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} is not a checkpoint: {' '.join(str(error).split())[:200]}") from error
    except Exception as error:
        # pickle has errors of its own, and which of them a torn file causes is an accident
        if type(error).__module__ not in ("pickle", "_pickle"):
            raise
        raise ValueError(f"{path} is not a checkpoint: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of format {FORMAT}")
    was = state["identity"]
    for key in sorted({*was, *identity}):
        if was.get(key) != identity.get(key):
            raise ValueError(
                f"{path} belongs to another training: {key} was {was.get(key)!r} and is {identity.get(key)!r}; "
                "start anew under another --out, or ask for the same"
            )
    return state
