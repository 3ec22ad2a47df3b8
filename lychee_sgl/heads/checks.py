"""Field checks for head plans: each raises `PlanError` naming the key, the value and what is allowed.

Standard library only.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class PlanError(ValueError):
    """A head plan that cannot be read, is malformed, or does not fit a model."""


def shown(value: object) -> str:
    """A value as it appears in an error message, cut to a line's length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def fail(key: str, value: object, allowed: str) -> PlanError:
    """The error for one field; the caller raises it."""
    return PlanError(f"head plan: {key} is {shown(value)}; allowed: {allowed}")


def integer(key: str, value: object, *, low: int, high: int = 2**31 - 1) -> int:
    """A whole number in [low, high]; a bool is not one."""
    if type(value) is not int or not low <= value <= high:
        raise fail(key, value, f"a whole number from {low} to {high}")
    return value


def fraction(key: str, value: object, *, one: bool) -> float:
    """A finite number above 0 and below 1, or up to 1 with `one`."""
    allowed = "a number in (0, 1]" if one else "a number in (0, 1)"
    if type(value) not in (int, float):
        raise fail(key, value, allowed)
    number = float(value)  # type: ignore[arg-type]  # the line above says it is one
    if not math.isfinite(number) or not 0.0 < number <= 1.0 or (number == 1.0 and not one):
        raise fail(key, value, allowed)
    return number


def text(key: str, value: object) -> str:
    """A string of 1 to 200 printable characters: names end up in logs and metric labels."""
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise fail(key, value, "a string of 1 to 200 printable characters")
    return value


def mapping(key: str, value: object) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise fail(key, value, "an object with string keys")
    return value


def keys(where: str, value: Mapping[str, Any], *, required: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Refuse missing and unknown keys."""
    needed, extra = tuple(required), tuple(optional)
    prefix = f"{where}." if where else ""
    for name in needed:
        if name not in value:
            raise PlanError(f"head plan: {prefix}{name} is missing; needed here: {', '.join(needed)}")
    for name in value:
        if name not in needed and name not in extra:
            raise fail(prefix + shown(name)[1:-1], value[name], f"no such key; known: {', '.join((*needed, *extra))}")


def read_json(path: Path) -> object:
    """The JSON value of a file; duplicated keys, NaN and infinities are refused.

    Raises:
        PlanError: the file cannot be read, is not UTF-8, or is not (strict) JSON.
    """

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
            raise PlanError(f"head plan {path}: key {shown(twice)} appears twice in one object")
        return result

    def constant(name: str) -> float:
        raise PlanError(f"head plan {path}: {name} is not a JSON number")

    try:
        return json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except OSError as error:
        raise PlanError(f"head plan {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"head plan {path}: not UTF-8 text (byte {error.start})") from error
    except PlanError:
        raise
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
        raise PlanError(f"head plan {path}: not JSON: {error}") from error


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 as `write_bytes` does."""
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside the target, then rename over it: a reader sees the old file or the new one, never half."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: the form that hashes are taken of.

    Raises:
        ValueError, TypeError: something in it is not JSON (NaN and infinities included).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
