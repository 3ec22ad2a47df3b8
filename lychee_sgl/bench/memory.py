"""Answers about long documents: read block by block, against truncation and retrieval of chunks, over HTTP."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx
import psutil

from lychee_sgl.bench.memory_tasks import KINDS, documents
from lychee_sgl.memory.chunks import cut
from lychee_sgl.memory.retrieval import rank

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lychee_sgl.bench.memory_tasks import Asked, Document
    from lychee_sgl.heads.haystack import Haystack

READING: Final = ("text", "text-gate", "text-oracle", "compressed", "compressed-gate")
"""Read block by block: all of them, those that the engine's gate accepts, those that hold a needed fact;
compressed, all of them and those that the gate accepts."""
GATED: Final = ("text-gate", "compressed-gate")
COMPRESSED: Final = ("compressed", "compressed-gate")
METHODS: Final = (*READING, "retrieval", "truncation")
ANSWER_SECONDS: Final = 7 * 24 * 3600.0
_PASSAGE_TOKENS: Final = 256
_MARGIN: Final = 0.9
"""Of the reader's tokens that the baselines fill: their texts are measured in characters."""


class MemoryBenchError(RuntimeError):
    """The measurement cannot be made; the message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured; answers are only gone on with under the same.

    Attributes:
        lengths: of the documents, in tokens.
        documents: of each length; each is asked three questions.
        chunk: most tokens of a block.
        working_memory: most tokens of the notes.
        seed: of the documents.
        model: as the engine names it.
        haystack: digest of the text.
        gate: what the engine says of its gate; None: it has none.
        compressor: digest of the engine's, where `compressed` is asked for.
        ratio: tokens that an embedding stands for.
        answer_tokens: longest answer.
    """

    lengths: tuple[int, ...]
    documents: int
    chunk: int
    working_memory: int
    seed: int
    model: str
    haystack: str
    gate: Any = None
    compressor: str | None = None
    ratio: int | None = None
    answer_tokens: int = 40

    @property
    def reader_tokens(self) -> int:
        """What a method may have before it at one time: the baselines get as much as a block and the notes."""
        return self.chunk + self.working_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answer.

    Attributes:
        document: its name.
        tokens: its length, about.
        kind: of the question.
        order: which question on this document, from 0 on.
        method: one of `METHODS`.
        right: whether the answer is in the reply.
        reply: the answer.
        seconds: from the request to the end of the answer.
        tokens_read: prompt tokens of all calls.
        peak_bytes: most memory of the engine's processes meanwhile; None where they are not ours.
        account: the answer's own, where a document was read.
    """

    document: str
    tokens: int
    kind: str
    order: int
    method: str
    right: bool
    reply: str
    seconds: float
    tokens_read: int
    peak_bytes: int | None
    account: dict[str, Any] | None


class Answers:
    """A file of answers, one line each, behind a line that says what is measured."""

    def __init__(self, path: Path, plan: Plan) -> None:
        """Opens or begins the file.

        Raises:
            MemoryBenchError: it belongs to another measurement.
        """
        self._path = path
        head = json.loads(json.dumps(asdict(plan)))
        lines = path.read_text().splitlines() if path.exists() else []
        if lines and _parsed(lines[0]) != head:
            raise MemoryBenchError(f"{path} holds answers under other settings; move it away, or choose another --out")
        self.rows = _complete([Row(**row) for row in map(_parsed, lines[1:]) if row is not None])
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in (head, *map(asdict, self.rows))))
        fresh.replace(path)

    def add(self, rows: Sequence[Row]) -> None:
        """Keeps answers."""
        self.rows += rows
        with self._path.open("a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def _parsed(line: str) -> dict[str, Any] | None:
    """A line's object; None for one that was cut off by a crash."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _complete(rows: Sequence[Row]) -> list[Row]:
    """The rows of documents whose questions were all asked: others are begun anew, as the first question warms."""
    asked = Counter((row.document, row.method) for row in rows)
    return [row for row in rows if asked[row.document, row.method] == len(KINDS)]


class Peak:
    """Watches the memory of this process's descendants for the time of a block."""

    def __init__(self, *, ours: bool) -> None:
        self._ours = ours
        self._stop = threading.Event()
        self.bytes: int | None = None

    def __enter__(self) -> Peak:
        if self._ours:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._ours:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes or 0, _held())
            if self._stop.wait(1.0):
                return


def _held() -> int:
    held = 0
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            held += process.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return held


class Bench:
    """Asks one engine."""

    def __init__(self, address: str, plan: Plan, *, ours: bool) -> None:
        """Takes the engine's address, what is measured, and whether the engine is a child of this process."""
        self._plan, self._ours = plan, ours
        self._http = httpx.Client(base_url=address, timeout=ANSWER_SECONDS, trust_env=False)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def run(
        self,
        texts: Sequence[Document],
        methods: Sequence[str],
        answers: Answers,
        say: Callable[[str], None],
        *,
        chars: float,
    ) -> None:
        """Asks all questions that `answers` does not hold; a document that was broken off is begun anew.

        Args:
            texts: the documents.
            methods: which ways to answer.
            answers: where they go.
            say: gets a line for each answer, and one for each tenth of a reading.
            chars: characters of a token.
        """
        done = {(row.document, row.method) for row in answers.rows}
        for document in texts:
            for method in methods:
                if (document.name, method) in done:
                    continue
                # the first question is to find nothing that an earlier document or method has left
                self._http.get("/flush_cache").raise_for_status()
                rows = []
                for order, asked in enumerate(document.asked):
                    row = self._row(document, asked, order, method, chars, say)
                    verdict = "right" if row.right else "wrong"
                    told = f"{verdict}, {row.seconds:.1f} s, {row.tokens_read} tokens"
                    say(f"{document.name} {method} {asked.kind}: {told}")
                    rows.append(row)
                answers.add(rows)

    def _row(
        self, document: Document, asked: Asked, order: int, method: str, chars: float, say: Callable[[str], None]
    ) -> Row:
        began = time.monotonic()
        account: dict[str, Any] | None = None
        with Peak(ours=self._ours) as peak:
            if method in READING:
                said, read, account = self._read(document, asked, method, say)
            else:
                room = int(_MARGIN * self._plan.reader_tokens)
                text = shortened(document.text, asked.question, method, room, chars)
                said, read = self._chat(f"{text}\n\n{asked.question}")
        return Row(
            document=document.name,
            tokens=document.tokens,
            kind=asked.kind,
            order=order,
            method=method,
            right=asked.is_answered_by(said),
            reply=said,
            seconds=round(time.monotonic() - began, 3),
            tokens_read=read,
            peak_bytes=peak.bytes,
            account=account,
        )

    def _chat(self, text: str) -> tuple[str, int]:
        answer = self._http.post("/v1/chat/completions", json=self._body([text]))
        if answer.status_code != 200:
            raise MemoryBenchError(f"the engine answered {answer.status_code}: {answer.text:.300}")
        body = answer.json()
        return body["choices"][0]["message"]["content"] or "", body["usage"]["prompt_tokens"]

    def _read(
        self, document: Document, asked: Asked, method: str, say: Callable[[str], None]
    ) -> tuple[str, int, dict[str, Any]]:
        mode = "compressed" if method in COMPRESSED else "text"
        params: dict[str, Any] = {"lychee_memory": mode, "lychee_chunk": self._plan.chunk}
        params["lychee_working_memory"] = self._plan.working_memory
        if mode == "compressed":
            params["lychee_ratio"] = self._plan.ratio
        if method == "text-oracle":
            params["lychee_gate"] = list(asked.needed)
        elif method not in GATED and self._plan.gate is not None:
            params["lychee_gate"] = "off"
        body = {**self._body([document.text, asked.question]), "stream": True, "custom_params": params}
        body["stream_options"] = {"include_usage": True}
        said, usage, account = "", 0, None
        with self._http.stream("POST", "/v1/chat/completions", json=body) as stream:
            if stream.status_code != 200:
                stream.read()
                raise MemoryBenchError(f"the engine answered {stream.status_code}: {stream.text:.300}")
            for line in stream.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise MemoryBenchError(f"{document.name}: {chunk['error']['message']}")
                memory = chunk.get("lychee", {}).get("memory", {})
                if "phase" in memory and memory["chunk"] % max(1, memory["chunks"] // 10) == 0:
                    say(f"{document.name}: {memory['says']}")
                elif "mode" in memory:
                    account = memory
                said += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                usage = (chunk.get("usage") or {}).get("prompt_tokens", usage)
        if account is None:
            raise MemoryBenchError(f"{document.name}: the stream ended before the answer was complete")
        return said, usage, account

    def _body(self, texts: Sequence[str]) -> dict[str, Any]:
        return {
            "model": self._plan.model,
            "messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}],
            "max_tokens": self._plan.answer_tokens,
            "temperature": 0,
        }


def shortened(text: str, question: str, method: str, tokens: int, chars: float) -> str:
    """What a baseline lets the model see.

    Args:
        text: the document.
        question: what is asked.
        method: `truncation` keeps beginning and end, half each; `retrieval` the passages that BM25 ranks first for the
            question, in the order of the document.
        tokens: how much, about.
        chars: characters of a token.
    """
    room = int(tokens * chars)
    if len(text) <= room:
        return text
    if method == "truncation":
        return f"{text[: room // 2]}\n\n{text[len(text) - room // 2 :]}"
    blocks = cut(text, _PASSAGE_TOKENS, lambda parts: [[0] * math.ceil(len(part) / chars) for part in parts])
    passages = [block.text for block in blocks]
    kept: list[int] = []
    for i in rank(passages, question, 4 * tokens // _PASSAGE_TOKENS):
        if sum(len(passages[j]) for j in kept) + len(passages[i]) <= room:
            kept.append(i)
    return "".join(passages[i] for i in sorted(kept))


def served(address: str) -> tuple[str, object]:
    """The model's name, and what is said of the engine's gate; None: it has none.

    Raises:
        MemoryBenchError: the engine cannot read documents.
    """
    with httpx.Client(base_url=address, timeout=300.0, trust_env=False) as http:
        info = http.get("/lychee/info")
        if info.status_code != 200 or "text" not in info.json().get("memory", {}).get("modes", ()):
            raise MemoryBenchError(f"{address} is no engine that reads documents block by block")
        return str(info.json()["model"]), info.json()["memory"].get("gate")


def served_compressor(address: str, ratio: int | None) -> tuple[str, int]:
    """The digest of an engine's compressor, and the ratio: the one asked for, else the engine's own.

    Raises:
        MemoryBenchError: the engine has no compressor, or not for this ratio.
    """
    with httpx.Client(base_url=address, timeout=300.0, trust_env=False) as http:
        memory = http.get("/lychee/info").raise_for_status().json()["memory"]
    if "compressed" not in memory["modes"]:
        raise MemoryBenchError(f"{address} is no engine that compresses blocks: it has no compressor (--compressor)")
    if ratio is not None and ratio not in memory["ratios"]:
        raise MemoryBenchError(f"--ratio is {ratio}; allowed: {', '.join(map(str, memory['ratios']))}")
    return str(memory["compressor"]), int(memory["ratio"] if ratio is None else ratio)


def chars_per_token(address: str, model: str, text: Haystack) -> float:
    """Asks the engine how many tokens the first paragraphs are."""
    sample = "\n\n".join(text.paragraphs[:40])
    with httpx.Client(base_url=address, timeout=300.0, trust_env=False) as http:
        answer = http.post("/tokenize", json={"model": model, "prompt": sample, "add_special_tokens": False})
        answer.raise_for_status()
        return round(len(sample) / int(answer.json()["count"]), 2)


def made(plan: Plan, text: Haystack, chars: float) -> tuple[Document, ...]:
    """The documents of a plan."""
    return documents(plan.lengths, plan.documents, seed=plan.seed, text=text, chars_per_token=chars)
