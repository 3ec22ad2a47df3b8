"""Real prose to hide needles in, from what every Python carries, or from files of one's own.

Built in are the language reference that `pydoc` shows (`pydoc_data.topics`) and the documentation strings of the
standard library, both under Python's own licence (PSF-2.0); nothing is fetched. Text is cut into paragraphs, and every
page (a topic, a module, a file) belongs to one of two kinds, `calibration` and `evaluation`, so that what a plan is
made from and what it is judged on share no paragraph. Standard library only.
"""

import ast
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

from lychee_sgl.heads.needles import CHARS_PER_TOKEN, KINDS, Kind

SUFFIXES = (".txt", ".md", ".rst")
"""Files that are read from a folder."""

_SHORTEST = 120
_LONGEST = 4000


@dataclass(frozen=True, slots=True)
class Haystack:
    """Paragraphs of prose, in the order of their pages.

    Attributes:
        paragraphs: each one line.
        origin: where they come from, for provenance.
    """

    paragraphs: tuple[str, ...]
    origin: str

    @property
    def digest(self) -> str:
        """First 16 digits of the SHA-256 of all paragraphs: another Python's documentation is another haystack."""
        return sha256("\n".join(self.paragraphs).encode()).hexdigest()[:16]

    def bury(
        self,
        draw: Random,
        facts: Sequence[str],
        depths: Sequence[float],
        tokens: float,
        chars_per_token: float = CHARS_PER_TOKEN,
    ) -> str:
        """A document with facts between its paragraphs.

        Args:
            draw: from where the document begins.
            facts: sentences, each a paragraph of its own.
            depths: their places as shares of the document, rising.
            tokens: its length, facts included, about.
            chars_per_token: of the tokeniser on this text.

        Raises:
            ValueError: the haystack has too little text for a document of this length.
        """
        size = max(1, round(tokens * chars_per_token) - sum(len(fact) + 2 for fact in facts))
        if size > sum(len(block) + 2 for block in self.paragraphs):
            raise ValueError(f"context of {tokens:.0f} tokens is more text than there is in {self.origin}")
        first = draw.randrange(len(self.paragraphs))
        blocks: list[str] = []
        ends = [0]
        while ends[-1] < size:
            block = self.paragraphs[(first + len(blocks)) % len(self.paragraphs)]
            left = size - ends[-1]
            blocks.append(block if len(block) <= left else block[:left].rpartition(" ")[0] or block[:left])
            ends.append(ends[-1] + len(block) + 2)
        places = [min(range(len(ends)), key=lambda i: abs(ends[i] - depth * size)) for depth in depths]
        for place, fact in sorted(zip(places, facts, strict=True), key=lambda pair: pair[0], reverse=True):
            blocks.insert(place, fact)
        return "\n\n".join(blocks)


def python_haystack(kind: Kind) -> Haystack:
    """The documentation that comes with Python, its half for one kind."""
    pages = [*_topics(), *_docstrings()]
    return Haystack(_prose(pages, kind), "Python's pydoc_data.topics and standard library docstrings (PSF-2.0)")


def reference_haystack(kind: Kind) -> Haystack:
    """The language reference alone, its half for one kind: a third of the text, and there at once."""
    return Haystack(_prose(_topics(), kind), "Python's pydoc_data.topics (PSF-2.0)")


def file_haystack(path: Path) -> Haystack:
    """One text file, or all text files of a folder and the folders in it.

    Raises:
        ValueError: there is no prose: no paragraph of 120 characters or more that begins with a capital letter and
            ends with a full stop.
        OSError: a file cannot be read.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    pages = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    blocks = _paragraphs(pages)
    if not blocks:
        raise ValueError(
            f"haystack is {path}; allowed: a text file, or a folder with {', '.join(SUFFIXES)}, with prose"
        )
    return Haystack(blocks, path.name)


def _topics() -> list[str]:
    from pydoc_data.topics import topics  # half a megabyte that only this function needs

    return [topics[name] for name in sorted(topics)]


def _docstrings() -> list[str]:
    """One page for every top-level module of the standard library, and every module of its packages."""
    root = Path(sysconfig.get_path("stdlib"))
    pages = []
    for file in sorted((*root.glob("*.py"), *root.glob("[a-z]*/*.py"))):
        if not {"test", "tests", "site-packages", "dist-packages", "idlelib"} & set(file.parts):
            page = "\n\n".join(_strings(file))
            if page:
                pages.append(page)
    return pages


def _strings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # a sample of bad code: the library holds a few
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            told = ast.get_docstring(node)
            if told:
                yield told


def _prose(pages: Iterable[str], kind: Kind) -> tuple[str, ...]:
    """Paragraphs of every second page; one that stands on several pages belongs to the first."""
    owner: dict[str, int] = {}
    for number, page in enumerate(pages):
        for block in _paragraphs([page]):
            owner.setdefault(block, number % len(KINDS))
    return tuple(block for block, page in owner.items() if page == KINDS.index(kind))


def _paragraphs(pages: Iterable[str]) -> tuple[str, ...]:
    """Sentences, no tables, grammars or listings."""
    blocks = (" ".join(block.split()) for page in pages for block in page.split("\n\n"))
    return tuple(
        block
        for block in blocks
        if _SHORTEST < len(block) < _LONGEST and block[0].isupper() and block[-1] == "." and ">>>" not in block
    )
