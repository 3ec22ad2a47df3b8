"""When are two answers to a needle question the same? Pure functions."""

import re
from typing import Final

# Digits, possibly in groups. Fewer than five are a year or a count, not one of the numbers asked for.
NUMBER: Final = re.compile(r"\d(?:[ ,]?\d){4,}")


def given_number(reply: str) -> str | None:
    """The first number of at least five digits in a reply, its groups joined; None without one."""
    found = NUMBER.search(reply)
    return None if found is None else re.sub(r"[ ,]", "", found.group())


def has_number(expected: str, reply: str) -> bool:
    """Whether one of a reply's numbers is the expected one, digit by digit, however it is grouped."""
    return expected in (re.sub(r"[ ,]", "", found) for found in NUMBER.findall(reply))


def same_answer(expected: str, one: str, other: str) -> bool:
    """Whether two replies answer a question alike.

    They do when both give the expected number. When neither does, they do only if they give the same wrong number, or
    both give none. When exactly one gives the expected number, they differ.

    Args:
        expected: the number asked for, digits only.
        one: a reply.
        other: another.
    """
    found = has_number(expected, one), has_number(expected, other)
    return all(found) if any(found) else given_number(one) == given_number(other)
