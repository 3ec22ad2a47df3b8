"""A few small repositories with a fault each: enough to try the environment and to test it."""

from typing import Final

from lychee_sgl.rewards.environments.code_repair import RepairTask

_SPANS: Final = '''"""Spans of whole numbers, both ends included."""


def merge(spans):
    """Join spans that overlap or touch, and sort them."""
    joined = []
    for low, high in sorted(spans):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return joined
'''

_SPANS_TESTS: Final = """import unittest

from spans import merge


class MergeTest(unittest.TestCase):
    def test_apart(self):
        self.assertEqual(merge([(5, 6), (1, 2)]), [(1, 2), (5, 6)])

    def test_touching(self):
        self.assertEqual(merge([(1, 2), (3, 4)]), [(1, 4)])

    def test_one_inside_the_other(self):
        self.assertEqual(merge([(1, 9), (2, 3)]), [(1, 9)])
"""

_PAGES: Final = '''"""Cuts a list into pages."""


def page(items, number, size):
    """The items of a page; the first page is number 1."""
    start = number * size
    return items[start : start + size]


def count(items, size):
    """How many pages there are; no items make none."""
    return (len(items) + size - 1) // size
'''

_PAGES_TESTS: Final = """import unittest

from shop.pages import count, page


class PagesTest(unittest.TestCase):
    def test_first(self):
        self.assertEqual(page([1, 2, 3], 1, 2), [1, 2])

    def test_last_is_short(self):
        self.assertEqual(page([1, 2, 3], 2, 2), [3])

    def test_count(self):
        self.assertEqual([count([0] * n, 2) for n in (0, 1, 2, 3)], [0, 1, 1, 2])
"""

_TALLY: Final = '''"""Counts words."""


def tally(text, into={}):
    """How often each word stands in a text; added to counts that are given."""
    for word in text.lower().split():
        into[word] = into.get(word, 0) + 1
    return into
'''

_TALLY_TESTS: Final = """import unittest

from tally import tally


class TallyTest(unittest.TestCase):
    def test_counts(self):
        self.assertEqual(tally("a b A"), {"a": 2, "b": 1})

    def test_each_call_begins_anew(self):
        tally("a")
        self.assertEqual(tally("a"), {"a": 1})

    def test_adds_to_what_is_given(self):
        self.assertEqual(tally("a", {"a": 1}), {"a": 2})
"""


def sample_tasks() -> tuple[RepairTask, ...]:
    """Three repositories of one or two files."""
    return (
        RepairTask(
            name="spans",
            issue="merge() in spans.py loses the end of a span that holds another one: (1, 9) and (2, 3) give (1, 3).",
            files={"spans.py": _SPANS},
            tests={"tests/test_spans.py": _SPANS_TESTS},
            count=3,
        ),
        RepairTask(
            name="pages",
            issue="page() in shop/pages.py gives the second page when the first is asked for.",
            files={"shop/__init__.py": "", "shop/pages.py": _PAGES},
            tests={"tests/test_pages.py": _PAGES_TESTS},
            count=3,
        ),
        RepairTask(
            name="tally",
            issue="tally() in tally.py remembers the words of earlier calls.",
            files={"tally.py": _TALLY},
            tests={"tests/test_tally.py": _TALLY_TESTS},
            count=3,
        ),
    )
