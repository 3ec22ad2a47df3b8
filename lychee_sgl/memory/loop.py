"""The loop over a document's blocks: steps in order, notes, second pass. Nothing of it knows which engine runs them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lychee_sgl.memory import prompts
from lychee_sgl.memory.chunks import cut
from lychee_sgl.memory.notes import Memory
from lychee_sgl.memory.settings import QUESTION_TOKENS, check_fits
from lychee_sgl.memory.split import Refused
from lychee_sgl.memory.step import Asker, BlockFailed, Step, StepRunner

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from lychee_sgl.memory.bank import Bank
    from lychee_sgl.memory.blocks import BlockBank
    from lychee_sgl.memory.chunks import Block
    from lychee_sgl.memory.model import Model
    from lychee_sgl.memory.settings import ReadSettings

__all__ = ["BlockFailed", "Progress", "Reader", "Reading", "Report"]

Phase = Literal["read", "again", "answer"]
_DRAFT_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is about to be done.

    Attributes:
        phase: `read`, `again` (the second pass), or `answer`.
        chunk: which block, from 1 on.
        chunks: of how many in this phase.
        kept: blocks that gave notes so far.
    """

    phase: Phase
    chunk: int
    chunks: int
    kept: int

    @property
    def says(self) -> str:
        """One line for people."""
        if self.phase == "answer":
            return f"answering from {self.kept} of {self.chunks} chunks"
        verb = "reading" if self.phase == "read" else "reading again"
        return f"{verb} chunk {self.chunk} of {self.chunks}, kept {self.kept}"


@dataclass(slots=True, kw_only=True)
class Report:
    """What reading took, so far."""

    document_tokens: int = 0
    chunks: int = 0
    kept: int = 0
    skipped: int = 0
    gated: int = 0
    tokens_read: int = 0
    tokens_written: int = 0
    cached_tokens: int = 0
    banked_steps: int = 0
    retries: int = 0
    second_pass: bool = False
    seconds: float = 0.0
    compressed_blocks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A document read for a question.

    Attributes:
        memory: the notes.
        prompt: the user message that asks for the answer, notes in place of the document.
        report: what it took.
    """

    memory: Memory
    prompt: str
    report: Report


@dataclass(slots=True)
class _Scan:
    """Where a reading is: the memory now, with which one a block was left without a note, what the gate skipped."""

    memory: Memory = field(default_factory=Memory)
    kept: set[int] = field(default_factory=set)
    passed: dict[int, Memory] = field(default_factory=dict)
    gated: set[int] = field(default_factory=set)


class Reader:
    """Reads documents with one model. Keeps nothing of a reading but what the bank keeps."""

    def __init__(
        self, model: Model, bank: Bank | None, settings: ReadSettings, blocks: BlockBank | None = None
    ) -> None:
        """Takes the parts, which stay the caller's; where the settings have a ratio, `blocks` gives what is read."""
        self._model, self._bank, self._settings, self._blocks = model, bank, settings, blocks

    async def read(self, document: str, question: str) -> AsyncGenerator[Progress | Reading, None]:
        """Reads a document; close the generator to give up, which ends the steps that run.

        Args:
            document: of any length.
            question: what is asked.

        Yields:
            What is about to be done; last the reading.

        Raises:
            Refused: question or settings do not fit the window.
            BlockFailed: a block could not be read; steps that were finished are in the bank.
        """
        began = time.monotonic()
        asker = await self._asker(question)
        blocks = await asyncio.to_thread(cut, document, self._settings.chunk, self._model.encode)
        report = asker.report
        report.chunks, report.document_tokens = len(blocks), sum(len(block.tokens) for block in blocks)
        runner, scan = StepRunner(asker, len(blocks)), _Scan()
        async with contextlib.aclosing(self._scan(runner, scan, blocks, "read")) as reading:
            async for progress in reading:
                yield progress
        behind = [block for block in blocks if scan.passed.get(block.index, scan.memory) != scan.memory]
        if behind and await self._absent(asker, scan.memory):
            report.second_pass = True
            async with contextlib.aclosing(self._scan(runner, scan, behind, "again")) as reading:
                async for progress in reading:
                    yield progress
        report.kept, report.skipped = len(scan.kept), len(blocks) - len(scan.kept)
        report.gated = len(scan.gated)
        yield Progress(phase="answer", chunk=len(blocks), chunks=len(blocks), kept=report.kept)
        report.seconds = time.monotonic() - began
        prompt = prompts.answer(question, scan.memory.text)
        yield Reading(memory=scan.memory, prompt=prompt, report=report)

    async def _asker(self, question: str) -> Asker:
        parts = (self._model, self._bank, self._settings, question, Report(), self._blocks)
        asker = await asyncio.to_thread(Asker, *parts)
        if not asker.question_tokens:  # of characters that the tokeniser drops
            raise Refused("the question has no token that the model knows, allowed: one or more", "messages")
        if asker.question_tokens > QUESTION_TOKENS:
            raise Refused(
                f"the question has {asker.question_tokens} tokens, allowed: {QUESTION_TOKENS}; of several texts the "
                "longest is the document and the others are the question",
                "messages",
            )
        check_fits(self._settings, window=self._model.window, frame=asker.frame_tokens)
        return asker

    async def _absent(self, asker: Asker, memory: Memory) -> bool:
        """Whether the notes do not answer the question."""
        if not memory.notes:
            return True
        said = await asker.draft(memory, _DRAFT_TOKENS)
        return prompts.says_absent(said, f"{memory.text}\n{asker.question}")

    async def _scan(
        self, runner: StepRunner, scan: _Scan, blocks: Sequence[Block], phase: Phase
    ) -> AsyncGenerator[Progress, None]:
        """Takes blocks in order. Those ahead are read with the memory of now, and once more if it changes before."""
        running: dict[int, asyncio.Task[Step]] = {}
        try:
            for position, block in enumerate(blocks):
                yield Progress(phase=phase, chunk=position + 1, chunks=len(blocks), kept=len(scan.kept))
                for other in blocks[position : position + self._settings.ahead]:
                    if other.index not in running:
                        running[other.index] = asyncio.create_task(runner.run(other, scan.memory))
                step = await running.pop(block.index)
                scan.gated = scan.gated | {block.index} if step.gated else scan.gated - {block.index}
                memory = scan.memory.take(step.notes, self._settings.working_memory)
                if step.notes:
                    scan.kept.add(block.index)
                else:
                    scan.passed[block.index] = scan.memory
                if memory != scan.memory:
                    scan.memory = memory
                    await _end(running)
        finally:
            await _end(running)


async def _end(running: dict[int, asyncio.Task[Step]]) -> None:
    """Gives up what was begun, and waits until it is; what became of it does not matter any more."""
    tasks = list(running.values())
    running.clear()
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would complain
