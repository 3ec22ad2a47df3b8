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
        head = {"schema": SCHEMA, **json.loads(json.dumps(asked))}
        kept = cls(path)
        if not path.exists():
            kept._write(head)
            return kept
        whole, _, torn = path.read_bytes().rpartition(b"\n")
        lines = whole.decode("utf-8").splitlines()
        if not lines:
            path.unlink()
            return cls.open(path, asked)
        try:
            was, entries = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
        except ValueError as error:
            raise ValueError(f"{path} is not a file of answers: {error}") from error
        for key in sorted({*head, *was}) if isinstance(was, dict) else ["schema"]:
            if not isinstance(was, dict) or was.get(key) != head.get(key):
                told = was.get(key) if isinstance(was, dict) else was
                raise ValueError(f"{path} holds other questions: {key} was {told!r} and is {head.get(key)!r}")
        if torn:
            os.truncate(path, len(whole) + 1)
        for entry in entries:
            kept._take(entry)
        return kept

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
