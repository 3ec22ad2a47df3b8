"""One step: what a block says on a question, given the notes so far. Pure, so it is kept and never asked twice."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lychee_sgl.memory import prompts
from lychee_sgl.memory.bank import key_of
from lychee_sgl.memory.gate_features import Evidence
from lychee_sgl.memory.model import ModelFailed
from lychee_sgl.memory.notes import Note, begins_a_quote, passages, sentences
from lychee_sgl.memory.retrieval import rank

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from lychee_sgl.memory.bank import Bank
    from lychee_sgl.memory.blocks import BlockBank, Compressed
    from lychee_sgl.memory.chunks import Block
    from lychee_sgl.memory.loop import Report
    from lychee_sgl.memory.model import Inlay, Model, Reply
    from lychee_sgl.memory.notes import Memory
    from lychee_sgl.memory.settings import ReadSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE_SECONDS: Final = 0.2
_FIRST_TOKENS: Final = 16
"""Of an answer about a block, after which it has to look like a quote."""


class BlockFailed(RuntimeError):
    """A block could not be read, or no answer drafted. The message names it, the cause, and what is not lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What came of one block; without notes it counts as skipped.

    Attributes:
        notes: passages of it.
        gated: whether the gate skipped it.
    """

    notes: tuple[Note, ...] = ()
    gated: bool = False


class Asker:
    """The calls for one question, each counted in the report.

    Attributes:
        model: who is asked.
        bank: where steps are kept, if anywhere.
        settings: how the document is read.
        question: what is asked of it.
        report: what all of it took so far.
        blocks: where compressed blocks come from, where the settings have a ratio.
        question_tokens: its length.
        frame_tokens: of a step's prompt without block and notes.
        frame_digest: of their ids.
    """

    def __init__(
        self,
        model: Model,
        bank: Bank | None,
        settings: ReadSettings,
        question: str,
        report: Report,
        blocks: BlockBank | None = None,
    ) -> None:
        """Prepares a question: tokenises, so not for an event loop.

        Raises:
            ValueError: there is a ratio, and nowhere to have compressed blocks from.
        """
        self.model, self.bank, self.settings, self.blocks = model, bank, settings, blocks
        if settings.ratio is not None and blocks is None:
            raise ValueError(f"ratio is {settings.ratio}; allowed without a compressor: None")
        self.question, self.report = question, report
        self.question_tokens = len(model.encode([question])[0])
        frame = prompts.frame(model, prompts.quote(question, "x"))
        self.frame_tokens = len(frame)
        # template and tokeniser as this question shows them: steps of others are not reused
        self.frame_digest = key_of([*frame.head], [*frame.tail])
        # behind the question stands what the template closes with, which is not scored
        self._closing = len(prompts.frame(model, "").tail)
        self._plain: dict[str, tuple[float, ...]] = {}
        self._scoring = asyncio.Lock()

    async def generate(
        self,
        tokens: Sequence[int],
        max_tokens: int,
        score_from: int | None = None,
        stop: str | None = None,
        inlay: Inlay | None = None,
    ) -> Reply:
        """Asks the model, and counts."""
        reply = await self.model.generate(tokens, max_tokens=max_tokens, score_from=score_from, stop=stop, inlay=inlay)
        self.report.tokens_read += reply.prompt_tokens
        self.report.tokens_written += reply.completion_tokens
        self.report.cached_tokens += reply.cached_tokens
        return reply

    async def context(self, block: Block) -> Sequence[int] | Compressed:
        """Gives what the model reads of a block: its tokens, or its embeddings.

        Raises:
            ModelFailed: it could not be compressed.
        """
        if self.settings.ratio is None or self.blocks is None:
            return block.tokens
        compressed, made = await self.blocks.get(block, self.settings.ratio, self.settings.salt)
        self.report.compressed_blocks += made
        return compressed

    async def insist(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """Makes a call, and again where the engine fails it.

        Args:
            name: of what is asked, for people.
            call: makes it once.

        Raises:
            BlockFailed: all attempts failed.
        """
        for attempt in range(1, self.settings.attempts):
            try:
                return await call()
            except ModelFailed as error:
                self.report.retries += 1
                log.warning("%s is tried again: %s", name, error)
                await asyncio.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            return await call()
        except ModelFailed as error:
            kept = "; what was read is kept, the same request goes on from there" if self.bank is not None else ""
            raise BlockFailed(f"{name} failed {self.settings.attempts} times: {error}{kept}") from error

    async def draft(self, memory: Memory, max_tokens: int) -> str:
        """Answers from the notes, for the loop's own eyes; kept in the bank as steps are."""
        how = [self.model.identity, self.frame_digest.hex(), max_tokens]
        key = key_of("draft", prompts.VERSION, how, self.question, memory.text)
        kept = await self.bank.find(key) if self.bank is not None else None
        if isinstance(kept, str):
            return kept
        text = prompts.answer(self.question, memory.text)
        rendered = await asyncio.to_thread(self.model.render, [{"role": "user", "content": text}])
        (tokens,) = await asyncio.to_thread(self.model.encode, [rendered])
        said = (await self.insist("the draft of the answer", lambda: self.generate(tokens, max_tokens))).text
        if self.bank is not None:
            await self.bank.keep(key, said)
        return said

    async def gain(self, context: Sequence[int] | Compressed) -> float:
        """How much likelier a context makes the question: mean log-probability gained for each token.

        A model too small to say whether a text is relevant still finds the question less surprising behind one that is.
        """
        gained, _ = await self.gains(context)
        return sum(gained) / len(gained)

    async def gains(
        self, context: Sequence[int] | Compressed, notes: str = ""
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """How much likelier a context makes each token of the question, given notes; and how likely they are without.

        Returns:
            Nats gained, and log-probabilities beside the notes alone, both in the order of the tokens.
        """
        frame = await asyncio.to_thread(prompts.frame, self.model, prompts.ask(self.question, notes))
        scored = min(self.question_tokens, len(frame.tail) - self._closing)
        last = -self._closing if self._closing else None
        behind = frame.around(context)
        reply = await self.generate(behind, 1, len(behind) - len(frame.tail), inlay=frame.inlay(context))
        async with self._scoring:  # passages are scored at once, and the question alone is the same for all of them
            if notes not in self._plain:
                alone = frame.around(())
                plain = await self.generate(alone, 1, len(alone) - len(frame.tail))
                # passages are scored without notes, a block beside those of now: earlier notes are not asked for again
                self._plain = {key: value for key, value in self._plain.items() if not key} | {notes: plain.logprobs}
            unaided = self._plain[notes]
        # a template with nothing before the block has no log-probability for the first token behind it
        pairs = list(zip(reversed(reply.logprobs[:last]), reversed(unaided[:last]), strict=False))
        pairs = pairs[:scored][::-1]
        return tuple(behind_it - alone for behind_it, alone in pairs), tuple(alone for _, alone in pairs)

    async def evidence(
        self, block: Block, notes: str, *, needs_gain: bool, context: Sequence[int] | Compressed | None = None
    ) -> Evidence:
        """What a gate's verdict on a block is made from; without the gain the model is not asked.

        Args:
            block: the block.
            notes: those of now.
            needs_gain: whether the gate looks at the gain.
            context: what the model reads of the block; None: its tokens.
        """
        read = block.tokens if context is None else context
        gained, alone = await self.gains(read, notes) if needs_gain else ((), ())
        return Evidence(question=self.question, notes=notes, block=block.text, gained=gained, alone=alone)


class StepRunner:
    """Runs steps: out of the bank, or by the model, with further attempts."""

    def __init__(self, asker: Asker, blocks: int) -> None:
        """Takes the calls, and how many blocks the document has."""
        self._asker, self._blocks = asker, blocks

    async def run(self, block: Block, memory: Memory) -> Step:
        """Runs one step.

        Raises:
            BlockFailed: all attempts failed.
        """
        asker = self._asker
        key = self._key(block, memory)
        kept = await asker.bank.find(key) if asker.bank is not None else None
        if kept is not None:
            asker.report.banked_steps += 1
            notes = tuple(replace(Note(**note), block=block.index) for note in kept["notes"])
            return Step(notes=notes, gated=bool(kept.get("gated", False)))
        name = f"chunk {block.index + 1} of {self._blocks}"
        step = await asker.insist(name, lambda: self._ask(block, memory))
        # weights can be exchanged meanwhile: what neither the old nor the new ones have said is kept for neither
        if asker.bank is not None and key == self._key(block, memory):
            notes_kept = [_as_json(note) for note in step.notes]
            await asker.bank.keep(key, {"notes": notes_kept, **({"gated": True} if step.gated else {})})
        return step

    def _key(self, block: Block, memory: Memory) -> bytes:
        settings, asker = self._asker.settings, self._asker
        gate = settings.gate.identity if settings.gate is not None else None
        how: list[object] = [gate, _FIRST_TOKENS, settings.quote_tokens, settings.candidates, settings.keep]
        if asker.blocks is not None and settings.ratio is not None:
            how += [settings.ratio, asker.blocks.identity]
        parts = (asker.model.identity, how, asker.frame_digest, block.digest, asker.question, memory.text)
        return key_of("step", prompts.VERSION, *parts)

    async def _ask(self, block: Block, memory: Memory) -> Step:
        asker, gate = self._asker, self._asker.settings.gate
        context = None
        if gate is not None:
            context = await asker.context(block) if gate.needs_gain else None
            evidence = await asker.evidence(block, memory.text, needs_gain=gate.needs_gain, context=context)
            if not await asyncio.to_thread(gate.accepts, evidence):
                return Step(gated=True)
        if context is None:
            context = await asker.context(block)
        frame = await asyncio.to_thread(prompts.frame, asker.model, prompts.quote(asker.question, memory.text))
        said = await self._quoted(block, frame.around(context), frame.inlay(context))
        query = f"{asker.question}\n{memory.text}"
        places = await asyncio.to_thread(_candidates, said, block.text, query, asker.settings.candidates)
        notes = await _together([self._note(block, start, end) for start, end in places])
        return Step(notes=tuple(note for note in notes if note.score >= asker.settings.keep))

    async def _quoted(self, block: Block, prompt: list[int], inlay: Inlay | None) -> str:
        """What the model copies of a block; broken off where it begins with words of its own.

        A small model seldom says that there is nothing: it talks on, and those tokens were most of what a block whose
        KV is there already took.
        """
        asker, most = self._asker, self._asker.settings.quote_tokens
        begun = await asker.generate(prompt, min(_FIRST_TOKENS, most), stop="\n\n", inlay=inlay)
        # tokens of bytes may end inside a character, which then stands there as one that is none
        said = begun.text.rstrip("\ufffd")
        if begun.completion_tokens < _FIRST_TOKENS or not begins_a_quote(said, block.text):
            return said
        (tokens,) = await asyncio.to_thread(asker.model.encode, [said])
        left = most - max(begun.completion_tokens, len(tokens))
        if left <= 0:
            return said
        further = await asker.generate([*prompt, *tokens], left, stop="\n\n", inlay=inlay)
        return (said + further.text).partition("\n\n")[0]

    async def _note(self, block: Block, start: int, end: int) -> Note:
        text = " ".join(block.text[start:end].split())
        (tokens,) = await asyncio.to_thread(self._asker.model.encode, [f"{text}\n"])
        score = await self._asker.gain(tokens)
        return Note(block=block.index, start=start, text=text, score=score, tokens=len(tokens))


async def _together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs calls at once, results in their order; where one fails, the others are given up before it is told."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _candidates(reply: str, block: str, query: str, count: int) -> list[tuple[int, int]]:
    """What the model quotes, and the sentences that share most words with question and notes."""
    quoted = passages(reply, block)
    places = sentences(block) if count else []
    best = [places[i] for i in rank([block[start:end] for start, end in places], query, count)]
    further = [place for place in best if all(place[1] <= start or end <= place[0] for start, end in quoted)]
    return sorted([*quoted, *further])


def _as_json(note: Note) -> dict[str, Any]:
    return {"block": 0, "start": note.start, "text": note.text, "score": note.score, "tokens": note.tokens}
