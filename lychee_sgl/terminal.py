"""What every command line of this package shares: how it is run, what a mistake looks like, where it may write."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import typer
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

MENDABLE: Final = (ValueError, OSError, ModuleNotFoundError)
"""What a caller can mend. All errors of settings and files are `ValueError`s."""

# All that can be wrong with a command line; a wrong value is a kind of it, and the one that typer exports.
_USAGE: Final[type[Exception]] = typer.BadParameter.__mro__[1]


def run(app: typer.Typer, arguments: Sequence[str] | None = None, program: str | None = None) -> NoReturn:
    """Run an application; what is wrong with its command line is one line, too.

    Args:
        app: the application.
        arguments: the words behind its name; those of this process by default.
        program: its name in the help.

    Raises:
        SystemExit: always: 0, the command's own status, 2 for a command line that cannot be read, 130 for Ctrl-C.
    """
    words = None if arguments is None else list(arguments)
    try:
        status = typer.main.get_command(app)(words, program, standalone_mode=False)
    except typer.Abort:
        status = 130
    except _USAGE as error:
        _tell_usage(error)
        status = 2
    raise SystemExit(status if isinstance(status, int) else 0)


@contextmanager
def one_line_errors(*more: type[Exception]) -> Iterator[None]:
    """Turn what a caller can mend into one line and exit status 1, Ctrl-C into 130.

    Args:
        more: further exceptions that count as such, beside `MENDABLE`.
    """
    mendable: tuple[type[Exception], ...] = (*MENDABLE, *more)
    try:
        yield
    except mendable as error:
        complain(str(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def complain(text: str) -> None:
    """Print an error as one line on standard error, however many lines it has."""
    line = " ".join(text.split())
    Console(stderr=True).print(f"error: {line}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left in a terminal; else a line every tenth of the way.

    Args:
        unit: what is counted, one of it.

    Yields:
        To be told how many are done, and of how many.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(f"{unit}s"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=None)

        def tell(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)
            if not console.is_terminal and (done % max(1, of // 10) == 0 or done == of):
                console.print(f"{unit} {done} of {of}", highlight=False)

        yield tell


def writable(file: Path, option: str = "--out", *, folder_is_made: bool = False) -> None:
    """Refuse an output file that could not be written when the work is done. Makes and writes nothing.

    Args:
        file: the file, which may be there already.
        option: where it was named.
        folder_is_made: its folder need not be there: who writes the file makes it.

    Raises:
        ValueError: its folder is missing or cannot be written, or it is a folder itself.
    """
    if folder_is_made and not file.parent.is_dir():
        writable_folder(file.parent, f"the folder of {option}")
        return
    if not file.parent.is_dir():
        raise ValueError(f"{option} is {file}; allowed: a file in a folder that exists")
    if file.is_dir():
        raise ValueError(f"{option} is {file}, a folder; allowed: a file")
    try:
        if file.exists():
            file.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise ValueError(f"{option} is {file}: {error.strerror}; allowed: a file that can be written") from error


def writable_folder(folder: Path, option: str = "--out") -> None:
    """Refuse an output folder that could not be made or written. Makes and writes nothing.

    Raises:
        ValueError: it is a file, or cannot be made or written.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{option} is {folder}: {there} is a file; allowed: a folder, which is made if there is none")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"{option} is {folder}: {error.strerror}; allowed: a folder that can be written") from error


def web_address(text: str, option: str = "--url") -> str:
    """Refuse what is no address of a server.

    Returns:
        The address.

    Raises:
        ValueError: it has no scheme that is HTTP's, or no host.
    """
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        usable = False
    if not usable:
        raise ValueError(f"{option} is {text!r}; allowed: an address such as http://127.0.0.1:8000")
    return text


def _tell_usage(error: Any) -> None:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # making it has printed the help, where rich prints it
        if text := str(error.format_message()).strip():
            typer.echo(text, err=True)
        return
    hint = "" if context is None else f"; see {context.command_path} --help"
    complain(f"{_wrong_number(error) or error.format_message().rstrip('.')}{hint}")


def _wrong_number(error: Any) -> str | None:
    """A wrong number in our own words, with the value and the whole range; None where it is something else."""
    param: Any = getattr(error, "param", None)
    cause: Any = error.__cause__
    kind: Any = getattr(getattr(param, "type_descriptor", None), "annotation", None)
    what = {int: "a whole number", list[int]: "whole numbers", float: "a number", list[float]: "numbers"}.get(kind)
    if what is None or not hasattr(cause, "errors"):
        return None
    low, high = param.min, param.max
    allowed = what + (f" from {low}" if low is not None else "") + (f" to {high}" if high is not None else "")
    return f"{param.opts[0]} is {cause.errors()[0]['input']!r}; allowed: {allowed}"
