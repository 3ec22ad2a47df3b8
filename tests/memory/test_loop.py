"""The loop over a scripted model: order, notes, progress, second pass, failures, resuming, giving up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_sgl.memory.bank import Bank
from lychee_sgl.memory.gate import Classifier, Oracle, Threshold, Weight
from lychee_sgl.memory.loop import BlockFailed, Progress, Reader, Reading
from lychee_sgl.memory.model import ModelFailed
from lychee_sgl.memory.settings import ReadSettings
from lychee_sgl.memory.split import Refused
from tests.memory.scripted_model import ScriptedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SETTINGS = ReadSettings(chunk=64, working_memory=64)
QUESTION = "Where is the key?"


def document(blocks: int, facts: dict[int, str]) -> str:
    """Blocks of some sixty tokens, with a line of its own for each fact."""
    parts = []
    for number in range(blocks):
        lines = [facts[number]] if number in facts else []
        filler = 56 - 2 * len(" ".join(lines).split())
        lines.append(" ".join(f"w{number}" for _ in range(filler // 2)))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


async def read(
    model: ScriptedModel, text: str, bank: Bank | None = None, wanted: ReadSettings = SETTINGS, question: str = QUESTION
):
    events = [event async for event in Reader(model, bank, wanted).read(text, question)]
    assert isinstance(events[-1], Reading)
    return events[-1], [event for event in events[:-1] if isinstance(event, Progress)]


async def test_a_question_that_leaves_no_token_is_refused() -> None:
    model = ScriptedModel()
    plain = model.encode
    model.encode = lambda texts: plain([text.replace("\u200b", "") for text in texts])  # type: ignore[method-assign]
    with pytest.raises(Refused, match="no token that the model knows"):
        await read(model, document(2, {}), question="\u200b")
    assert model.asked == []


async def test_blocks_in_order_notes_and_a_prompt_with_them() -> None:
    facts = {1: "The key is under the mat.", 3: "Nobody found the key yet."}
    model = ScriptedModel(wanted=["key"])
    reading, told = await read(model, document(5, facts))
    assert [note.text for note in reading.memory.notes] == list(facts.values())
    assert [note.block for note in reading.memory.notes] == [1, 3]
    assert reading.prompt == f"The key is under the mat.\nNobody found the key yet.\n\n{QUESTION}"
    assert [progress.says for progress in told] == [
        "reading chunk 1 of 5, kept 0",
        "reading chunk 2 of 5, kept 0",
        "reading chunk 3 of 5, kept 1",
        "reading chunk 4 of 5, kept 1",
        "reading chunk 5 of 5, kept 2",
        "answering from 2 of 5 chunks",
    ]
    report = reading.report
    assert (report.chunks, report.kept, report.skipped, report.second_pass) == (5, 2, 3, False)
    assert report.document_tokens == len(model.encode([document(5, facts)])[0])
    assert report.tokens_read == model.tokens
    assert all("What is known so far" in text for text in model.blocks_asked()[2:])


async def test_a_prompt_begins_with_its_block_whatever_is_asked() -> None:
    model = ScriptedModel()
    text = document(3, {})
    await read(model, text)
    first = [asked.split("Question:")[0] for asked in model.blocks_asked()]
    model.asked.clear()
    await read(model, text, question="Who are you?")
    assert [asked.split("Question:")[0] for asked in model.blocks_asked()] == first
    assert first[0].startswith("<user> w0 w0")


async def test_a_made_up_quote_is_no_note() -> None:
    model = ScriptedModel(reply=lambda prompt: "The key is in the moon, everybody knows it.")
    reading, _ = await read(model, document(3, {}))
    assert reading.memory.notes == ()
    assert reading.report.skipped == 3
    assert "nothing that answers it was found" in reading.prompt


async def test_words_of_its_own_are_broken_off_and_a_quote_goes_on() -> None:
    """Sixteen tokens decide: a quote is asked for its rest, behind what it began with."""
    fact = " ".join(["The key is in the long drawer", *(f"f{number}" for number in range(12))])
    begun, rest = " ".join(fact.split()[:16]), " ".join(["", *fact.split()[16:]])
    talk = " ".join(f"talk{number}" for number in range(16))

    def reply(prompt: str) -> str:
        if prompt.endswith(begun):
            return rest
        return begun if fact in prompt.partition("Question:")[0] else talk

    model = ScriptedModel(["drawer"], reply)
    reading, _ = await read(model, document(4, {2: fact}), wanted=replace(SETTINGS, candidates=0))
    asked = model.blocks_asked()
    assert len(asked) == 4 + 1
    assert [text.endswith(begun) for text in asked].index(True) == 3
    assert reading.memory.text == fact


async def test_what_the_model_overlooks_is_found_by_its_words() -> None:
    model = ScriptedModel(wanted=["mat"], reply=lambda prompt: "none")
    reading, _ = await read(model, document(3, {2: "The key is under the mat."}))
    assert [note.text for note in reading.memory.notes] == ["The key is under the mat."]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from([None, 0.5]))
def test_reading_ahead_changes_nothing(seed: int, ahead: int, gate: float | None) -> None:
    draw = random.Random(seed)
    facts = {number: f"The key number {draw.randrange(99)} is here." for number in range(8) if draw.random() < 0.4}
    text = document(8, facts)

    def one(prompt: str) -> str:
        # what is quoted depends on what is known: every second fact only once another is
        lines = [line for line in prompt.splitlines() if line.startswith("The key number")]
        known = "What is known so far" in prompt
        return "\n".join(line for line in lines if known or line.split()[3] < "5") or "none"

    async def both():
        wanted = replace(SETTINGS, gate=None if gate is None else Threshold(gate), candidates=0)
        alone = await read(ScriptedModel(["key number"], one), text, wanted=wanted)
        model = ScriptedModel(["key number"], one)
        together = await read(model, text, wanted=replace(wanted, ahead=ahead))
        return alone, together, model

    (alone, told), (together, also_told), model = asyncio.run(both())
    assert together.memory == alone.memory
    assert also_told == told
    assert (together.report.kept, together.report.second_pass) == (alone.report.kept, alone.report.second_pass)
    assert model.most_running <= ahead
    assert model.running == 0


async def test_blocks_ahead_are_asked_about_at_the_same_time() -> None:
    """Neither of two blocks is answered for before both are asked about."""
    both = asyncio.Barrier(2)

    class Waiting(ScriptedModel):
        async def generate(self, tokens: Sequence[int], **how):
            if "Copy the sentences" in self.decode(tokens):
                async with asyncio.timeout(60):
                    await both.wait()
            return await super().generate(tokens, **how)

    model = Waiting()
    reading, _ = await read(model, document(2, {}), wanted=replace(SETTINGS, ahead=2))
    assert len(model.blocks_asked()) == reading.report.chunks == 2


async def test_a_gate_skips_without_a_quote() -> None:
    model, wanted = ScriptedModel(wanted=["key"]), replace(SETTINGS, gate=Threshold(0.5))
    reading, _ = await read(model, document(6, {4: "The key is under the mat."}), wanted=wanted)
    assert [note.block for note in reading.memory.notes] == [4]
    assert (reading.report.skipped, reading.report.gated) == (5, 5)
    assert len(model.blocks_asked()) == 1


async def test_a_second_pass_over_what_was_skipped_before_the_memory_changed() -> None:
    """The second hop stands before the first: only who knows the first can see it."""
    facts = {1: "Anna has the number 5551234.", 4: "The key is kept by Anna."}

    def one(prompt: str) -> str:
        if "Copy the sentences" not in prompt:
            return "not found" if "5551234" not in prompt else "It is 5551234."
        known = "The key is kept by Anna." in prompt.split("What is known so far:")[-1]
        return facts[1] if known and facts[1] in prompt else facts[4] if facts[4] in prompt else "none"

    model = ScriptedModel(["Anna"], one)
    reading, told = await read(model, document(6, facts), wanted=replace(SETTINGS, candidates=0))
    assert [note.text for note in reading.memory.notes] == list(facts.values())
    assert reading.report.second_pass is True
    # block 5 was read with the memory of the end, blocks 0 to 3 without; block 4 gave a note
    assert [p.says for p in told if p.phase == "again"] == [
        "reading again chunk 1 of 4, kept 1",
        "reading again chunk 2 of 4, kept 1",
        "reading again chunk 3 of 4, kept 2",
        "reading again chunk 4 of 4, kept 2",
    ]


async def test_no_second_pass_where_the_memory_did_not_change() -> None:
    model = ScriptedModel(reply=lambda prompt: "none")
    reading, told = await read(model, document(4, {}))
    assert reading.report.second_pass is False
    assert {progress.phase for progress in told} == {"read", "answer"}


async def test_a_failed_step_is_tried_again() -> None:
    model = ScriptedModel(wanted=["key"])
    model.failures["w1"] = 2
    reading, _ = await read(model, document(3, {1: "The key is under the mat."}))
    assert reading.report.retries == 2
    assert len(reading.memory.notes) == 1


async def test_a_step_that_keeps_failing_ends_the_reading_by_name(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank", 10**6)
    model = ScriptedModel()
    model.failures["w2"] = 3
    with pytest.raises(BlockFailed, match="chunk 3 of 5 failed 3 times: no room for w2; what was read is kept"):
        await read(model, document(5, {}), bank)
    model.asked.clear()
    reading, _ = await read(model, document(5, {}), bank)
    assert reading.report.banked_steps == 2
    assert len(model.blocks_asked()) == 3
    bank.close()


@pytest.mark.parametrize("broken_off_at", range(1, 7))
async def test_a_crash_loses_nothing_that_was_finished(tmp_path: Path, broken_off_at: int) -> None:
    text = document(6, {0: "The key is under the mat.", 3: "The key is gone."})
    whole, _ = await read(ScriptedModel(["key"]), text)
    bank = Bank(tmp_path / "bank", 10**6)
    first = ScriptedModel(["key"])
    reading = Reader(first, bank, SETTINGS).read(text, QUESTION)
    for _ in range(broken_off_at):
        await anext(reading)
    await reading.aclose()
    bank.close()
    bank, second = Bank(tmp_path / "bank", 10**6), ScriptedModel(["key"])
    resumed, _ = await read(second, text, bank)
    assert resumed.memory == whole.memory
    assert len(first.blocks_asked()) == resumed.report.banked_steps == broken_off_at - 1
    assert len(second.blocks_asked()) == 6 - (broken_off_at - 1)
    again, _ = await read(third := ScriptedModel(["key"]), text, bank)
    assert again.report.banked_steps == 6
    assert third.blocks_asked() == []
    assert again.memory == whole.memory
    bank.close()


async def test_what_depends_on_something_else_is_asked_anew(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank", 10**6)
    text = document(3, {})
    await read(ScriptedModel(), text, bank)
    other = ScriptedModel()
    other.identity = "another model"
    for model, wanted, question in (
        (other, SETTINGS, QUESTION),
        (ScriptedModel(), replace(SETTINGS, gate=Threshold(-9.0)), QUESTION),
        (ScriptedModel(), SETTINGS, "Who has the key?"),
    ):
        reading, _ = await read(model, text, bank, wanted, question)
        assert reading.report.banked_steps == 0
    bank.close()


@pytest.mark.parametrize("ahead", [1, 3])
async def test_giving_up_ends_what_runs(ahead: int) -> None:
    model = ScriptedModel()
    model.hang = "w1"
    reading = Reader(model, None, replace(SETTINGS, ahead=ahead)).read(document(6, {}), QUESTION)

    async def consume() -> None:
        async for _ in reading:
            pass

    task = asyncio.create_task(consume())
    while not any("w1" in asked for asked in model.asked) or model.running != 1:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await reading.aclose()
    assert model.running == 0
    assert len(asyncio.all_tasks()) == 1


async def test_what_does_not_fit_is_refused_before_anything_is_asked() -> None:
    model = ScriptedModel(window=150)
    with pytest.raises(Refused, match="lychee_chunk is 64, allowed: up to"):
        await read(model, document(2, {}))
    with pytest.raises(Refused, match="the question has 1999 tokens, allowed: 1024"):
        await read(ScriptedModel(), document(2, {}), question=" ".join(["why"] * 1000))
    assert model.asked == []


async def test_an_empty_document_is_answered_from_nothing() -> None:
    reading, told = await read(ScriptedModel(), "")
    assert reading.report.chunks == 0
    assert [progress.says for progress in told] == ["answering from 0 of 0 chunks"]


async def test_closed_between_two_events_nothing_runs_on() -> None:
    model = ScriptedModel()
    model.hang = "w4"
    reading = Reader(model, None, replace(SETTINGS, ahead=3)).read(document(6, {}), QUESTION)
    for _ in range(4):
        await anext(reading)
    while model.running != 1:
        await asyncio.sleep(0)
    await reading.aclose()
    assert model.running == 0


async def test_a_draft_that_fails_is_tried_again() -> None:
    drafts = iter([ModelFailed("full"), ModelFailed("full"), "It is known."])

    def one(prompt: str) -> str:
        if "Copy the sentences" in prompt:
            return "The key is kept by Anna."
        said = next(drafts)
        if isinstance(said, ModelFailed):
            raise said
        return said

    text = document(6, {4: "The key is kept by Anna."})
    reading, _ = await read(ScriptedModel(["Anna"], one), text, wanted=replace(SETTINGS, candidates=0))
    assert reading.report.retries == 2
    assert next(drafts, None) is None


async def test_another_text_of_the_same_tokens_is_another_block(tmp_path: Path) -> None:
    """Of what a tokeniser does not know, every word is one and the same token."""

    class Narrow(ScriptedModel):
        def _id(self, word: str) -> int:
            return super()._id(word if word.isascii() else "?")

    bank = Bank(tmp_path / "bank", 10**6)
    for word in ("\u79d8\u5bc6", "\u516c\u958b"):
        text = document(3, {1: f"The key is {word} as they say."})
        reading, _ = await read(Narrow(["key"], lambda prompt: "none"), text, bank)
        assert [note.text for note in reading.memory.notes] == [f"The key is {word} as they say."]
    bank.close()


async def test_another_template_is_asked_anew(tmp_path: Path) -> None:
    class Other(ScriptedModel):
        def render(self, messages: Sequence[Mapping[str, str]]) -> str:
            return super().render(messages).replace("<user>", "<human>")

    bank, text = Bank(tmp_path / "bank", 10**6), document(3, {})
    known = ScriptedModel()
    known.encode(["<human> <user>"])
    await read(known, text, bank)
    other = Other()
    other.words, other._ids = known.words, known._ids
    assert (await read(other, text, bank))[0].report.banked_steps == 0
    same = ScriptedModel()
    same.words, same._ids = known.words, known._ids
    assert (await read(same, text, bank))[0].report.banked_steps == 3
    bank.close()


async def test_the_question_alone_is_scored_once_for_each_memory() -> None:
    text = document(4, {number: f"The key number {number} is here." for number in range(4)})
    model = ScriptedModel(["key number"])
    reading, _ = await read(model, text, wanted=replace(SETTINGS, gate=Threshold(0.1)))
    assert len(reading.memory.notes) == 4
    assert max(Counter(model.asked).values()) == 1


class BothAtOnce(ScriptedModel):
    """Scores no passage before both are asked for."""

    def __init__(self, wanted: Sequence[str]) -> None:
        super().__init__(wanted)
        self.both = asyncio.Barrier(2)

    async def generate(self, tokens: Sequence[int], **how):
        if how.get("score_from") is not None and "number" in self.decode(tokens):
            async with asyncio.timeout(60):
                await self.both.wait()
        return await super().generate(tokens, **how)


async def test_the_question_alone_is_scored_once_for_passages_at_the_same_time() -> None:
    model = BothAtOnce(["key number"])
    reading, _ = await read(model, document(1, {0: "The key number 1 is here.\nThe key number 2 is there."}))
    assert len(reading.memory.notes) == 2
    assert max(Counter(model.asked).values()) == 1


class OnePassageFails(ScriptedModel):
    """Scoring the first passage fails once, when the second is being scored, which then comes to no end by itself."""

    def __init__(self, wanted: Sequence[str]) -> None:
        super().__init__(wanted)
        self.failed = self.given_up = 0
        self.second = asyncio.Event()

    async def generate(self, tokens: Sequence[int], **how):
        text = self.decode(tokens) if how.get("score_from") is not None else ""
        if "under one" in text and not self.failed:
            await self.second.wait()
            self.failed += 1
            raise ModelFailed("no room")
        if "under two" in text and not self.given_up:
            self.second.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.given_up += 1
        return await super().generate(tokens, **how)


async def test_a_passage_that_fails_gives_up_the_others_and_the_step_is_tried_again() -> None:
    model = OnePassageFails(["key"])
    reading, _ = await read(model, document(1, {0: "The key is under one.\nThe other key is under two."}))
    assert (model.failed, model.given_up, model.running) == (1, 1, 0)
    assert reading.report.retries == 1
    assert len(reading.memory.notes) == 2


async def test_a_gate_of_words_asks_the_model_nothing_and_is_banked(tmp_path: Path) -> None:
    bank, gate = Bank(tmp_path / "bank", 10**6), Oracle(("under the mat",))
    text, wanted = document(6, {4: "The key is under the mat."}), replace(SETTINGS, gate=gate)
    model = ScriptedModel(wanted=["key"])
    reading, _ = await read(model, text, bank, wanted)
    assert [note.block for note in reading.memory.notes] == [4]
    assert (reading.report.skipped, reading.report.gated) == (5, 5)
    assert not [asked for asked in model.asked if "w1 w1" in asked]
    again, _ = await read(other := ScriptedModel(wanted=["key"]), text, bank, wanted)
    assert (again.report.banked_steps, again.report.gated) == (6, 5)
    assert other.blocks_asked() == []
    bank.close()


async def test_what_a_gate_skipped_is_read_once_the_notes_ask_for_it() -> None:
    """The second hop stands before the first: the gate of words accepts it once a note names who is meant."""
    facts = {1: "Call now Anna at 5551234.", 4: "The Oslo key is kept by Anna."}
    hop = Weight(name="hop", mean=0.0, scale=0.1, weight=1.0)
    named = Weight(name="named", mean=0.0, scale=0.1, weight=1.0)
    gate = Classifier(weights=(hop, named), bias=-3.0, threshold=0.5, model=None)

    def one(prompt: str) -> str:
        if "Copy the sentences" not in prompt:
            return "not found" if "5551234" not in prompt else "It is 5551234."
        return next((fact for fact in facts.values() if fact in prompt.split("What is known")[0]), "none")

    model = ScriptedModel(["Anna"], one)
    wanted = replace(SETTINGS, candidates=0, gate=gate)
    reading, told = await read(
        model, document(6, facts), wanted=wanted, question="Which number has the keeper of the Oslo key?"
    )
    assert [note.block for note in reading.memory.notes] == [1, 4]
    assert (reading.report.second_pass, reading.report.gated) == (True, 4)
    assert [progress.chunk for progress in told if progress.phase == "again"] == [1, 2, 3, 4]
