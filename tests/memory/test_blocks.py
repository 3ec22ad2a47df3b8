"""Blocks that are read compressed: the same loop over what a compressor made, and the bank that keeps it."""

from __future__ import annotations

import asyncio
import sqlite3
from array import array
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lychee_sgl.memory.bank import Bank
from lychee_sgl.memory.blocks import PLACEHOLDER, BlockBank
from lychee_sgl.memory.chunks import Block
from lychee_sgl.memory.gate import Threshold
from lychee_sgl.memory.loop import BlockFailed, Reader, Reading
from lychee_sgl.memory.settings import ReadSettings, check_fits
from lychee_sgl.memory.split import Refused
from tests.memory.scripted_model import Packing, ScriptedModel
from tests.memory.test_loop import QUESTION, document

if TYPE_CHECKING:
    from pathlib import Path

    from lychee_sgl.memory.gate import Gate

TEXT = ReadSettings(chunk=64, working_memory=64)
FACTS = {1: "The key is under the mat.", 3: "Nobody found the key yet."}


def block(tokens: list[int], index: int = 0) -> Block:
    ids = array("I", tokens)
    return Block(index=index, text="-", tokens=ids, digest=sha256(ids.tobytes()).digest())


async def read(
    model: ScriptedModel,
    packing: Packing,
    steps: Bank | None = None,
    kept: Bank | None = None,
    question: str = QUESTION,
    blocks: int = 5,
) -> Reading:
    wanted = replace(TEXT, ratio=packing.ratio)
    reader = Reader(model, steps, wanted, BlockBank(packing, kept))
    events = [event async for event in reader.read(document(blocks, FACTS), question)]
    assert isinstance(events[-1], Reading)
    return events[-1]


@pytest.mark.parametrize("ratio", [2, 16])
@pytest.mark.parametrize("gate", [None, Threshold(0.5)])
async def test_what_is_read_is_the_block_and_its_length_the_compressed_one(ratio: int, gate: Gate | None) -> None:
    plain, model, packing = ScriptedModel(wanted=["key"]), ScriptedModel(wanted=["key"]), Packing(ratio)
    text = [event async for event in Reader(plain, None, replace(TEXT, gate=gate)).read(document(5, FACTS), QUESTION)]
    wanted = replace(TEXT, gate=gate, ratio=ratio)
    reader = Reader(model, None, wanted, BlockBank(packing, None))
    events = [event async for event in reader.read(document(5, FACTS), QUESTION)]
    assert isinstance(text[-1], Reading)
    assert isinstance(events[-1], Reading)
    assert events[:-1] == text[:-1]
    assert (events[-1].memory, events[-1].prompt) == (text[-1].memory, text[-1].prompt)
    assert model.asked == plain.asked
    assert events[-1].report.compressed_blocks == len(packing.made) == 5
    # of every block that is read one placeholder for `ratio` tokens is left
    saved = sum(len(tokens) - len(tokens) // ratio for tokens in packing.made)
    if gate is None:  # which reads some blocks twice
        assert text[-1].report.tokens_read - events[-1].report.tokens_read == saved
    assert events[-1].report.tokens_read == model.tokens


async def test_the_next_question_compresses_nothing_and_the_same_one_asks_for_no_block(tmp_path: Path) -> None:
    model, packing = ScriptedModel(wanted=["key"]), Packing(4)
    with closing(Bank(tmp_path / "blocks", 100_000)) as kept, closing(Bank(tmp_path / "steps", 100_000)) as steps:
        first = await read(model, packing, steps, kept)
        assert first.report.compressed_blocks == len(packing.made) == 5
        second = await read(model, packing, steps, kept, "Is the mat where the key is?")
        assert (second.report.compressed_blocks, second.report.banked_steps) == (0, 0)
    with closing(Bank(tmp_path / "blocks", 100_000)) as kept:
        again = await read(model, other := Packing(4), None, kept)
        assert (other.made, again.report.compressed_blocks) == ([], 0)
        assert again.memory == first.memory
    with closing(Bank(tmp_path / "steps", 100_000)) as steps:
        same = await read(model, other := Packing(4), steps, None)
        assert (same.report.banked_steps, other.made) == (5, [])


async def test_steps_of_text_of_another_ratio_and_of_another_compressor_are_not_reused(tmp_path: Path) -> None:
    model = ScriptedModel(wanted=["key"])
    with closing(Bank(tmp_path / "steps", 100_000)) as steps:
        events = [event async for event in Reader(model, steps, TEXT).read(document(5, FACTS), QUESTION)]
        assert len(events) == 7
        for packing in (Packing(4), Packing(2), Packing(4, "trained further")):
            reading = await read(model, packing, steps)
            assert (reading.report.banked_steps, len(packing.made)) == (0, 5)


async def test_a_block_that_cannot_be_compressed_is_tried_again_and_then_named() -> None:
    model, packing = ScriptedModel(wanted=["key"]), Packing(4)
    packing.failures = 2
    assert (await read(model, packing)).report.retries == 2
    packing.failures = 3
    with pytest.raises(BlockFailed, match=r"^chunk 1 of 5 failed 3 times: no memory left$"):
        await read(model, packing)


@pytest.mark.timeout(30)
async def test_giving_up_ends_the_compression() -> None:
    model, packing = ScriptedModel(wanted=["key"]), Packing(4)
    packing.hang = True
    task = asyncio.create_task(read(model, packing))
    await packing.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert packing.ended == 1
    assert model.asked == []


async def test_one_block_wanted_twice_at_once_is_compressed_once(tmp_path: Path) -> None:
    packing = Packing(2)
    with closing(Bank(tmp_path / "blocks", 100_000)) as kept:
        blocks = BlockBank(packing, kept)
        got = await asyncio.gather(*(blocks.get(block([1, 2, 3, 4, 5]), 2) for _ in range(4)))
    assert [made for _, made in got].count(True) == len(packing.made) == 1
    assert {compressed.placeholders for compressed, _ in got} == {(PLACEHOLDER, PLACEHOLDER, 5)}
    assert {compressed.digest for compressed, _ in got} == {sha256(array("I", [1, 2, 3, 4]).tobytes()).digest()}


async def test_a_block_too_short_for_an_embedding_is_read_as_it_is() -> None:
    packing = Packing(8)
    compressed, made = await BlockBank(packing, None).get(block([7, 8, 9]), 8)
    assert (compressed.count, compressed.placeholders, made, packing.made) == (0, (7, 8, 9), False, [])


ACTIONS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 3), max_size=30),  # few tokens: equal blocks, and blocks that begin alike
        st.sampled_from((2, 4, 8)),
        st.sampled_from(("one", "two")),
        st.booleans(),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(ACTIONS, st.integers(180, 900))
async def test_it_never_gives_another_block_nor_holds_more_than_it_may(tmp_path_factory, actions, room: int) -> None:
    path = tmp_path_factory.mktemp("blocks") / "blocks.sqlite"
    bank = Bank(path, room)
    for tokens, ratio, identity, restart in actions:
        if restart:
            bank.close()
            bank = Bank(path, room)
        packing = Packing(ratio, identity)
        compressed, made = await BlockBank(packing, bank).get(block(tokens), ratio)
        whole = len(tokens) // ratio * ratio
        assert compressed.vectors == array("I", tokens[:whole]).tobytes()
        assert (compressed.count, compressed.rest) == (whole // ratio, tuple(tokens[whole:]))
        assert compressed.digest == sha256(compressed.vectors).digest()
        assert packing.made == ([tuple(tokens[:whole])] if made else [])
        assert bank.size <= room
        assert bank.size == _bytes(path)
    bank.close()


def _bytes(path: Path) -> int:
    """What the rows take, counted past the bank."""
    with closing(sqlite3.connect(path)) as rows:
        return sum(160 + len(value) for (value,) in rows.execute("SELECT value FROM rows"))


@pytest.mark.parametrize("broken", [b"\x07" * 16, b""])
async def test_a_block_that_was_changed_on_disk_is_made_anew(tmp_path: Path, broken: bytes) -> None:
    wanted = block([1, 2, 3, 4])
    with closing(Bank(tmp_path / "blocks", 10_000)) as bank:
        good, _ = await BlockBank(Packing(2), bank).get(wanted, 2)
        with closing(sqlite3.connect(tmp_path / "blocks")) as rows:
            assert rows.execute("UPDATE rows SET value = ?", (broken,)).rowcount == 1
            rows.commit()
        assert await BlockBank(Packing(2), bank).get(wanted, 2) == (good, True)
        assert await BlockBank(Packing(2), bank).get(wanted, 2) == (good, False)


@pytest.mark.parametrize("ratio", [2, 4, 8, 16])
def test_a_chunk_may_be_longer_by_the_ratio_and_the_refusal_names_the_longest(ratio: int) -> None:
    fixed = ReadSettings(chunk=64, working_memory=64, quote_tokens=64, ratio=ratio)
    with pytest.raises(Refused, match=rf"allowed: up to (\d+) at lychee_ratio {ratio} beside") as refused:
        check_fits(replace(fixed, chunk=100_000), window=1024, frame=100)
    longest = int(str(refused.value).split("up to ")[1].split()[0])
    check_fits(replace(fixed, chunk=longest), window=1024, frame=100)
    with pytest.raises(Refused):
        check_fits(replace(fixed, chunk=longest + 1), window=1024, frame=100)
    # 1024 less 100 of the frame, 64 of the quote, 72 of the notes
    assert (longest + 1) // ratio + ratio - 1 == 788 + 1


async def test_a_ratio_without_a_compressor_is_no_reading() -> None:
    reader = Reader(ScriptedModel(), None, replace(TEXT, ratio=4))
    with pytest.raises(ValueError, match="ratio is 4; allowed without a compressor: None"):
        await anext(reader.read("text", "what?"))
