"""The shape of a model folder. Standard library only."""

import json
from pathlib import Path

from lychee_sgl.heads.plan import ModelShape, PlanError


def read_shape(path: str | Path, *, name: str | None = None) -> ModelShape:
    """The shape of a model folder.

    Args:
        path: folder with a `config.json`.
        name: the model's name; by default `_name_or_path` of the file, or the folder's own name.

    Raises:
        PlanError: there is no readable `config.json`, or it lacks a size.
    """
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"model {path}: cannot read {file.name}: {error.strerror}") from error
    except ValueError as error:  # bad UTF-8 is one, too
        raise PlanError(f"model {path}: {file.name} is not JSON: {error}") from error
    named = config.get("_name_or_path") if isinstance(config, dict) else None
    return ModelShape.from_config(config, name=name or named or Path(path).resolve().name)
