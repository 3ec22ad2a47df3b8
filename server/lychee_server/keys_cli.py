"""`lychee-gateway keys`: make keys and hashes of keys."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic import ValidationError

from lychee_server.keys import SHORTEST_KEY, KeyEntry, KeyRing, KeysError, hash_key, new_key, parse_entries

if TYPE_CHECKING:
    from collections.abc import Sequence

_REFUSED = 1
_HEADER = "# Keys of the gateway: whose they are and their hashes. The keys themselves are nowhere.\n"


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line; the gateway has too many flags to list them all each time."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and end the process with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str]) -> int:
    """Run `keys add` or `keys hash`; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "add":
            return _add(Path(options.file), options.id, options.tier)
        return _hash()
    except KeysError as error:
        sys.stderr.write(f"lychee-gateway: {error}\n")
        return _REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="lychee-gateway keys", description="Make keys for callers of the gateway.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("add", help="add a key to a keys file and show it, this once")
    add.add_argument("--file", required=True, metavar="FILE", help="the keys file; made if it is not there")
    add.add_argument("--id", required=True, metavar="NAME", help="whose key it is")
    add.add_argument("--tier", metavar="NAME", help="a tier of the policy (default: none)")
    commands.add_parser("hash", help="read a key from standard input and show its hash")
    return parser


def _add(path: Path, name: str, tier: str | None) -> int:
    key = new_key()
    try:
        entry = KeyEntry(id=name, tier=tier, sha256=hash_key(key))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise KeysError(f"--{first['loc'][0]} is {first['input']!r}: {first['msg']}") from None
    try:
        text = path.read_text() if path.exists() else _HEADER
        text = _with(text, entry, str(path))
        _replace(path, text)
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error
    sys.stdout.write(f"{key}\n")
    sys.stderr.write(
        f"This key of {name!r} is not stored and cannot be shown again. SIGHUP makes a gateway read {path}.\n"
    )
    return 0


def _with(text: str, entry: KeyEntry, name: str) -> str:
    """Append an entry as text, so that comments and order of the file stay."""
    before = parse_entries(text, name)
    lines = [
        f"{key}: {value}"
        for key, value in (("id", f'"{entry.id}"'), ("tier", entry.tier and f'"{entry.tier}"'))
        if value
    ]
    lines.append(f'sha256: "{entry.sha256}"')
    if text and not text.endswith("\n"):
        text += "\n"
    text += "- " + "\n  ".join(lines) + "\n"
    try:
        after = parse_entries(text, name)
    except KeysError:
        after = []
    if after != [*before, entry]:
        raise KeysError(f"{name}: cannot be added to; write one entry a line that begins with a dash")
    KeyRing(after)
    return text


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all, for its owner's eyes; an existing one keeps its mode."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _hash() -> int:
    key = sys.stdin.readline().strip()
    if len(key) < SHORTEST_KEY:
        raise KeysError(f"the key has {len(key)} characters; at least {SHORTEST_KEY} are needed, random ones")
    sys.stdout.write(f"{hash_key(key)}\n")
    return 0
