"""Answers of an evaluation on disk: a line a question, added to as it runs, read back when it goes on.

The first line says what was asked. Every other line holds one question under some variants; a question may have several
lines, when variants were added later. A kill in the middle of a line costs that line.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCHEMA = "lychee-sgl/plan-answers"


@dataclass(frozen=True, slots=True)
class Answer:
    """One question under one variant.

    Attributes:
        found: numbers of the question that are in the reply.
        same: the reply is the dense one, token for token.
        recall: see `Reply.recall`.
    """

    found: int
    same: bool
    recall: float | None


@dataclass(slots=True)
class Answers:
    """All answers so far.

    Attributes:
        path: the file.
        questions: for each question's key what is known of it: `wanted`, how many numbers are asked for, `tokens` of
            its prompt, `depths`.
        answers: for each question's key, by variant.
    """

    path: Path
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, dict[str, Answer]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, asked: Mapping[str, Any]) -> Answers:
        """Begin a file, or go on with it.

        Args:
            path: the file.
            asked: what decides the questions; it must be what the file says.

        Raises:
            ValueError: the file is not one of answers, or of other questions; the message names the field.
            OSError: it cannot be read or written.
        """
        kept = cls.read(path, asked)
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        if not whole:
            path.unlink(missing_ok=True)
            kept._write(_head(asked))
        elif path.stat().st_size > len(whole) + 1:
            os.truncate(path, len(whole) + 1)
        return kept

    @classmethod
    def read(cls, path: Path, asked: Mapping[str, Any]) -> Answers:
        """What a file holds so far, if there is one; somebody else may be writing it.

        Args:
            path: the file.
            asked: as `open` has it.

        Raises:
            ValueError: as `open` does.
        """
        kept = cls(path)
        lines = path.read_bytes().rpartition(b"\n")[0].decode("utf-8").splitlines() if path.exists() else []
        try:
            entries = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"{path} is not a file of answers: {error}") from error
        if not entries:
            return kept
        was, head = entries[0] if isinstance(entries[0], dict) else {"schema": entries[0]}, _head(asked)
        for key in sorted({*head, *was}):
            if was.get(key) != head.get(key):
                raise ValueError(f"{path} holds other questions: {key} was {was.get(key)!r} and is {head.get(key)!r}")
        for entry in entries[1:]:
            kept._take(entry)
        return kept

    def take_in(self, other: Answers) -> None:
        """Know another file's answers, too, without writing them."""
        for key, given in other.answers.items():
            self.questions.setdefault(key, other.questions[key])
            self.answers.setdefault(key, {}).update(given)

    def has(self, question: str, variant: str) -> bool:
        """Whether an answer is there."""
        return variant in self.answers.get(question, {})

    def add(self, key: str, about: Mapping[str, Any], given: Mapping[str, Answer]) -> None:
        """Keep one question's answers."""
        entry = {
            "question": key,
            **about,
            "answers": {
                name: [one.found, int(one.same), None if one.recall is None else round(one.recall, 4)]
                for name, one in given.items()
            },
        }
        self._write(entry)
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        key = entry["question"]
        self.questions[key] = {name: value for name, value in entry.items() if name not in ("question", "answers")}
        kept = self.answers.setdefault(key, {})
        for name, (found, same, recall) in entry["answers"].items():
            kept[name] = Answer(found, bool(same), recall)

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
            file.flush()


def _head(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, **json.loads(json.dumps(asked))}
