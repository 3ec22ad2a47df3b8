"""A run's folder: what it asks, its samples, and one line for each record, written as they come.

Lines are JSON in ASCII: a reply may hold anything, also other line separators and halves of surrogate pairs.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from lychee_sgl.eval.errors import EvalError
from lychee_sgl.eval.sample import Sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SCHEMA: Final = "lychee-sgl/eval-run"
VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sample under one arm.

    Attributes:
        sample: its key.
        arm: the arm's name.
        score: in [0, 1]; None with an error.
        partial: of a trace, the share of its lines up to the first wrong one.
        reply: the text; empty with an error.
        finish_reason: why the answer ended.
        prompt_tokens: by the server's account.
        answer_tokens: likewise.
        first_token_seconds: from the request to the first text.
        seconds: from the request to the end.
        prefill_seconds: of the request of one token before the arms.
        attended_fraction: KV entries read as a share of dense ones; None where the server does not say.
        recall: attention mass that the sparse heads' tokens held; None likewise.
        context_tokens: prompt and answer.
        lychee: the whole object of the answer.
        error: what went wrong, or None.
    """

    sample: str
    arm: str
    score: float | None = None
    partial: float | None = None
    reply: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    first_token_seconds: float | None = None
    seconds: float | None = None
    prefill_seconds: float | None = None
    attended_fraction: float | None = None
    recall: float | None = None
    context_tokens: int | None = None
    lychee: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Sample and arm."""
        return self.sample, self.arm


class Store:
    """One run's folder. Only one process at a time may write into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None
        self._lock: IO[str] | None = None

    def open(self, identity: dict[str, Any], facts: dict[str, Any]) -> None:
        """Begin a run, or go on with one.

        Args:
            identity: what must be the same for a run to be gone on with.
            facts: what is only noted: versions, command, date.

        Raises:
            EvalError: another process writes here, or it is another run; the first field that differs is named.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EvalError(f"{self.folder} is being written by another process") from error
        path = self.folder / "run.json"
        wanted = json.loads(json.dumps(identity))
        if path.exists():
            found = read_run(self.folder)["identity"]
            differs = first_difference(found, wanted)
            if differs is not None:
                where, old, new = differs
                raise EvalError(f"{self.folder} is another run: {where} was {old!r} and is {new!r}; take another --out")
        else:
            _write(path, json.dumps({"schema": SCHEMA, "version": VERSION, "identity": wanted, "facts": facts}))

    def close(self) -> None:
        """Close the files."""
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None

    def samples(self) -> list[Sample] | None:
        """The samples, or None where they have not all been made yet."""
        path = self.folder / "samples.jsonl"
        if not path.exists():
            return None
        return [Sample.from_dict(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]

    def keep_samples(self, samples: Iterable[Sample]) -> None:
        """Write all samples, whole or not at all."""
        text = "".join(json.dumps(sample.as_dict()) + "\n" for sample in samples)
        _write(self.folder / "samples.jsonl", text)

    def records(self) -> dict[tuple[str, str], Record]:
        """Records so far, the last one of each sample and arm; a torn last line is cut off, and the rest kept.

        Raises:
            EvalError: another line cannot be read.
        """
        path = self.folder / "records.jsonl"
        if path.exists():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)
        return read_records(self.folder)

    def add(self, record: Record) -> None:
        """Append a record; once this returns, the death of the process cannot lose it."""
        if self._file is None:
            self._file = (self.folder / "records.jsonl").open("a", encoding="utf-8")
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()

    def finish(self, samples: Sequence[Sample], arms: Sequence[str]) -> None:
        """Put the records in the order of samples and arms, each once."""
        if self._file is not None:
            self._file.close()
            self._file = None
        found = self.records()
        keys = [(sample.key, arm) for sample in samples for arm in arms]
        text = "".join(json.dumps(asdict(found[key])) + "\n" for key in keys if key in found)
        _write(self.folder / "records.jsonl", text)


def read_run(folder: Path) -> dict[str, Any]:
    """What a folder's run is.

    Raises:
        EvalError: there is none, or of another version.
    """
    path = folder / "run.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(f"{folder} holds no run: {error}") from error
    if (found.get("schema"), found.get("version")) != (SCHEMA, VERSION):
        raise EvalError(f"{path}: schema and version are not {SCHEMA} and {VERSION}")
    return found


def read_records(folder: Path) -> dict[tuple[str, str], Record]:
    """Records of a folder, the last one of each sample and arm.

    Raises:
        EvalError: a line cannot be read.
    """
    path = folder / "records.jsonl"
    found: dict[tuple[str, str], Record] = {}
    if not path.exists():
        return found
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break  # being written, or torn
            try:
                record = Record(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise EvalError(f"{path}, line {number} is no record: {error}") from error
            found[record.key] = record
    return found


def first_difference(old: Any, new: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two JSON values differ, with both values there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
            if found is not None:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (one, other) in enumerate(zip(old, new, strict=True)):
            found = first_difference(one, other, f"{where}[{place}]")
            if found is not None:
                return found
        return None
    return None if old == new else (where, old, new)


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
