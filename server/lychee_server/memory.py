"""The part of the field `lychee` that has a document read block by block: checked, and held against the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from lychee_server.refusing import refuse
from lychee_server.schemas import MEMORY_KEYS, Memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lychee_server.schemas import LycheeRequest, MemoryInfo

MODES: tuple[str, ...] = get_args(Memory)
_LEAST = {"chunk": 64, "working_memory": 32, "ratio": 2}


def parse_memory(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Check the entries `memory`, `chunk`, `working_memory` and `ratio`; null means "not given".

    Raises:
        InvalidRequest: names the field, the value and what is allowed.
    """
    given = {key: raw[key] for key in MEMORY_KEYS if raw.get(key) is not None}
    mode = given.get("memory")
    if mode is not None and (not isinstance(mode, str) or mode not in MODES):
        raise refuse("lychee.memory", mode, ", ".join(f'"{name}"' for name in MODES))
    for key, least in _LEAST.items():
        value = given.get(key)
        if value is None:
            continue
        if key == "ratio" and mode != "compressed":
            raise refuse("lychee.ratio", value, 'only with lychee.memory "compressed"')
        if mode in (None, "off"):
            raise refuse(f"lychee.{key}", value, 'only with lychee.memory "text" or "compressed"')
        if type(value) is not int or value < least:
            raise refuse(f"lychee.{key}", value, f"an integer from {least}")
    return given


def served_memory(asked: LycheeRequest, info: MemoryInfo | None, *, chat: bool) -> LycheeRequest:
    """Refuse what this route or the engine does not do.

    Args:
        asked: the request's field.
        info: what the engine says of itself; None where it says nothing.
        chat: whether it is a chat completion.

    Returns:
        What the engine is asked for: without an `off` where there is nothing to switch off.

    Raises:
        InvalidRequest: names what is allowed here.
    """
    if asked.memory in (None, "off"):
        return asked if chat and info is not None else asked.model_copy(update={"memory": None})
    if not chat:
        raise refuse("lychee.memory", asked.memory, "only on /v1/chat/completions")
    modes = info.modes if info is not None else ()
    if asked.memory not in modes:
        allowed = ", ".join(f'"{name}"' for name in (*modes, "off"))
        raise refuse("lychee.memory", asked.memory, f"{allowed} (what this engine can do)")
    if asked.ratio is not None and info is not None and asked.ratio not in info.ratios:
        raise refuse("lychee.ratio", asked.ratio, f"{', '.join(map(str, info.ratios))} (what this engine can do)")
    return asked
