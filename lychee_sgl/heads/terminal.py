"""What the commands of `lychee-sgl heads` share: one-line errors, lines of output, and how a call is recorded."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a caller can mend into one line and exit status 1, Ctrl-C into 130."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:  # PlanError is a ValueError
        text = " ".join(str(error).split())
        Console(stderr=True).print(f"error: {text}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def say(line: str) -> None:
    """Print a line as it is."""
    Console(soft_wrap=True).print(line, markup=False, highlight=False)


def writable(out: Path) -> None:
    """Refuse an output file whose folder is missing.

    Raises:
        ValueError: it is.
    """
    if not out.parent.is_dir():
        raise ValueError(f"--out is {out}; allowed: a file in a folder that exists")


def command_line(model: Path) -> str:
    """This call without what only this machine knows: where the program, the model and other files lie."""
    words = sys.argv[1:]
    if "--cache" in words:
        at = words.index("--cache")
        words = words[:at] + words[at + 2 :]
    words = [model.resolve().name if word == str(model) else word for word in words]
    words = [Path(word).name if Path(word).is_absolute() else word for word in words]
    program = Path(sys.argv[0]).name == "__main__.py"  # python -m lychee_sgl.heads, which takes no word `heads`
    return shlex.join(["lychee-sgl", *(["heads"] if program else []), *words])
