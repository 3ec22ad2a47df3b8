"""Real text to train on, from what is installed, or from files of one's own; and to be judged on, which shares none.

To train on: the training half of Python's documentation (`lychee_sgl.heads.haystack`) and the docstrings of installed
packages. To be judged on: the other half of Python's documentation; a paragraph of it that stands anywhere in the
training text is taken out there. Standard library only.
"""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Final

from lychee_sgl.heads.haystack import Haystack, file_haystack, python_haystack
from lychee_sgl.heads.needles import Kind

PACKAGES: Final = (
    "torch",
    "transformers",
    "numpy",
    "huggingface_hub",
    "accelerate",
    "peft",
    "rich",
    "httpx",
    "pydantic",
)
"""Packages whose docstrings are read, where they are installed."""

_QUOTED: Final = re.compile(r"(\"\"\"|''')(.*?)\1", re.DOTALL)
_SHORTEST, _LONGEST = 80, 4000


def training_text(files: Sequence[Path] = (), packages: Sequence[str] = PACKAGES) -> Haystack:
    """Everything to train on, each paragraph once, in an order that is drawn.

    Args:
        files: text files and folders of one's own, in addition.
        packages: installed packages whose docstrings are read; those that are not installed are left out.

    Raises:
        ValueError: a file has no prose.
        OSError: a file cannot be read.
    """
    own = [file_haystack(path) for path in files]
    python = _python("calibration")
    found = {name: place for name in packages if (place := _place(name)) is not None}
    told = [*python.paragraphs, *(block for text in own for block in text.paragraphs)]
    told += [block for place in found.values() for block in _docstrings(place)]
    held_out = set(held_out_text().paragraphs)
    blocks = [block for block in dict.fromkeys(told) if block not in held_out]
    Random("lychee-sgl compressor").shuffle(blocks)
    origin = ", ".join((python.origin, *(text.origin for text in own), *(f"docstrings of {name}" for name in found)))
    return Haystack(tuple(blocks), origin)


def held_out_text() -> Haystack:
    """What nothing was trained on."""
    return _python("evaluation")


@cache
def _python(kind: Kind) -> Haystack:
    """Read once: it is parsed out of the whole standard library."""
    return python_haystack(kind)


def _place(package: str) -> Path | None:
    found = importlib.util.find_spec(package)
    return None if found is None or not found.submodule_search_locations else Path(found.submodule_search_locations[0])


def _docstrings(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*.py")):
        for text in _strings(file):
            for block in text.split("\n\n"):
                line = " ".join(block.split())
                if _SHORTEST < len(line) < _LONGEST and line[0].isupper() and line[-1] in ".:" and ">>>" not in line:
                    yield line


def _strings(file: Path) -> Iterator[str]:
    """Every string in triple quotes: nearly all are docstrings, and parsing would take a minute."""
    try:
        source = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    for match in _QUOTED.finditer(source):
        yield match[2]
