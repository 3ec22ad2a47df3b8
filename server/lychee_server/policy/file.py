"""Reads a policy file. What is wrong with it is said in one line: file, line, field, value, and what is allowed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError

from lychee_server.policy.schema import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_SHOWN_CHARACTERS = 80
_LARGEST_BYTES = 2**20


class PolicyError(ValueError):
    """A policy file cannot be used; the message is one line."""


def load_policy(path: Path) -> Policy:
    """Read and check a policy file.

    Raises:
        PolicyError: it cannot be read, is not YAML, or a field is wrong.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}") from error
    if len(raw) > _LARGEST_BYTES:
        raise PolicyError(f"{path}: {len(raw)} bytes; allowed: up to {_LARGEST_BYTES}")
    return parse_policy(raw, str(path))


def parse_policy(text: bytes | str, name: str) -> Policy:
    """Check a policy's YAML; `name` stands for it in messages. Raises as `load_policy`."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        for key in _repeated(root):
            raise PolicyError(f"{name}:{key.start_mark.line + 1}: {key.value} is given twice")
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PolicyError(f"{name}{line}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"{name}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(value, dict):
        raise PolicyError(f"{name}:1: a mapping with the key version is needed; given: {_show(value)}")
    try:
        return Policy.model_validate(value)
    except ValidationError as error:
        raise PolicyError(_one_line(name, root, error)) from error


def _repeated(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Yield keys that a mapping has twice: YAML would silently take the last."""
    children: Sequence[yaml.Node] = ()
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key
                seen.add(key.value)
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    for child in children:
        yield from _repeated(child)


def _one_line(name: str, root: yaml.Node | None, error: ValidationError) -> str:
    # The first error as the file has them: pydantic lists them by field.
    found = [(*_find(root, each["loc"]), each) for each in error.errors(include_url=False)]
    line, path, first = min(found, key=lambda each: each[0])
    message = first["msg"].removeprefix("Value error, ").splitlines()[0]
    match first["type"]:
        case "missing":
            return f"{name}:{line}: {path} is missing"
        case "extra_forbidden":
            return f"{name}:{line}: {path} is not known"
    given = "" if isinstance(first["input"], dict | list | tuple) else f" is {_show(first['input'])}"
    return f"{name}:{line}: {path or 'the policy'}{given}: {message}"


def _find(root: yaml.Node | None, location: Sequence[int | str]) -> tuple[int, str]:
    """Follow an error's location through the file; returns its line (from 1) and the dotted path of what is there."""
    node, line, path = root, 1, ""
    for part in location:
        if isinstance(node, yaml.MappingNode) and isinstance(part, str):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:  # a missing field, or pydantic's name for a branch of a union
                missing = location[-1] == part and part.isidentifier()
                return line, f"{path}.{part}".lstrip(".") if missing else path
            line, node = pair[0].start_mark.line + 1, pair[1]
            path = f"{path}.{part}".lstrip(".")
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line, path = node.start_mark.line + 1, f"{path}[{part}]"
        else:
            break
    return line, path


def _show(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
