"""Server-sent events as bytes: split a stream into events, read an event's data, write one. No I/O."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

DONE = b"[DONE]"
_END_OF_EVENT = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LONGEST_END = 4


class EventSplitter:
    """Cuts a byte stream into whole events. Joined, the events are the stream, byte for byte."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes and return the events they complete, each with its closing blank line."""
        scan_from = max(0, len(self._buffer) - _LONGEST_END + 1)
        self._buffer += data
        events = []
        start = 0
        for end in _END_OF_EVENT.finditer(self._buffer, scan_from):
            events.append(bytes(self._buffer[start : end.end()]))
            start = end.end()
        del self._buffer[:start]
        return events


def event_data(event: bytes) -> bytes:
    """Return the value of an event's `data` lines (joined by newlines), empty for a comment."""
    lines = [line.removeprefix(b"data:") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(line.removeprefix(b" ") for line in lines)


def json_event(value: object) -> bytes:
    """Write one event that carries `value` as JSON."""
    return b"data: " + dump_json(value) + b"\n\n"


def done_event() -> bytes:
    """Write the event that ends an OpenAI stream."""
    return b"data: " + DONE + b"\n\n"


def parse_object(data: bytes) -> dict[str, Any] | None:
    """Parse JSON that the engine wrote; None when it is not an object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def glance_object(data: bytes) -> dict[str, Any] | None:
    """Parse JSON of the engine that is only looked at and never written again.

    Several times as quick as `parse_object`, but integers above 64 bits lose digits.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return parse_object(data)  # NaN, for one, which the standard library takes
    return value if isinstance(value, dict) else None


def dump_json(value: object) -> bytes:
    """Write compact UTF-8 JSON; text that UTF-8 cannot carry (half a surrogate pair) stays escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
