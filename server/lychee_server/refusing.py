"""One wording for every refusal of a value: field, value, what is allowed."""

from __future__ import annotations

import json

from lychee_server.errors import InvalidRequest

_SHOWN_CHARACTERS = 80


def refuse(field: str, value: object, allowed: str) -> InvalidRequest:
    """Return the error for a value that is not allowed."""
    return InvalidRequest(f"{field} is {show(value)}; allowed: {allowed}", param=field)


def show(value: object, *, quote: bool = True) -> str:
    """Return a value as JSON, or as it is, cut where it is long."""
    text = json.dumps(value) if quote else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
