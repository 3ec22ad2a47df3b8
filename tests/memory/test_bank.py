"""The bank never holds more than it may, never gives a wrong value, and survives restarts, crashes and company."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lychee_sgl.memory.bank import Bank, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

ROW = 160  # what a row counts beyond its value
KEYS = [key_of(number) for number in range(6)]


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    made = Bank(tmp_path / "deep" / "bank.sqlite", 10_000)
    yield made
    made.close()


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 700)),
        st.tuples(st.just("get"), st.sampled_from(KEYS), st.just(0)),
        st.tuples(st.just("restart"), st.just(b""), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS, st.integers(200, 2500))
def test_it_does_what_a_dictionary_in_order_of_use_does(tmp_path_factory, actions, room: int) -> None:
    path = tmp_path_factory.mktemp("bank") / "bank.sqlite"
    bank, expected = Bank(path, room), {}
    size = dict.fromkeys(KEYS, 0)
    for number, (action, key, length) in enumerate(actions):
        if action == "put":
            value = f"{number}:" + "x" * length
            if len(value) + 2 + ROW <= room:  # two quotes around it
                expected.pop(key, None)
                expected[key], size[key] = value, len(value) + 2 + ROW
                while sum(size[held] for held in expected) > room:
                    expected.pop(next(iter(expected)))
            bank.put(key, value)
        elif action == "get":
            if key in expected:
                expected[key] = expected.pop(key)
            assert bank.get(key) == expected.get(key)
        else:
            bank.close()
            bank = Bank(path, room)
        assert bank.size == sum(size[held] for held in expected) <= room
    assert {key: bank.get(key) for key in KEYS} == {key: expected.get(key) for key in KEYS}
    bank.close()


@given(st.lists(st.one_of(st.binary(max_size=3), st.text(max_size=3)), max_size=3), st.data())
def test_other_parts_give_another_address(parts, data) -> None:
    other = data.draw(st.lists(st.one_of(st.binary(max_size=3), st.text(max_size=3)), max_size=3))
    assert (key_of(*parts) == key_of(*other)) == (parts == other)


def test_a_value_that_was_changed_on_disk_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "bank.sqlite"
    bank = Bank(path, 10_000)
    for key, value in zip(KEYS, "abcdef", strict=True):
        bank.put(key, value)
    bank.close()
    with sqlite3.connect(path) as rows:
        rows.execute("UPDATE rows SET value = ? WHERE key = ?", (b'"z"', KEYS[0]))
        one, other = [
            rows.execute("SELECT value, digest FROM rows WHERE key = ?", (KEYS[i],)).fetchone() for i in (1, 2)
        ]
        rows.execute("UPDATE rows SET value = ?, digest = ? WHERE key = ?", (*other, KEYS[1]))
    rows.close()
    assert one != other
    bank = Bank(path, 10_000)
    assert [bank.get(key) for key in KEYS] == [None, None, "c", "d", "e", "f"]
    assert bank.size == 4 * (3 + ROW)
    bank.close()


def test_a_file_that_is_no_bank_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "bank.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at" * 50)
    bank = Bank(path, 10_000)
    bank.put(KEYS[0], 1)
    assert bank.get(KEYS[0]) == 1
    bank.close()
    assert path.with_name("bank.sqlite.broken").read_bytes().startswith(b"not a database")


def test_only_its_owner_reads_it(tmp_path: Path, bank: Bank) -> None:
    bank.put(KEYS[0], "secret")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "deep").iterdir()}
    assert modes == {0o600}


def test_no_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_bytes is 0; allowed: 1 or more"):
        Bank(tmp_path / "bank.sqlite", 0)


async def test_a_bank_that_cannot_be_used_costs_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bank = Bank(tmp_path / "bank.sqlite", 10_000)
    bank.close()
    await bank.keep(KEYS[0], 1)
    assert await bank.find(KEYS[0]) is None
    assert "cannot be written" in caplog.text


def _fill(path: Path, start: int) -> None:
    bank = Bank(path, 20_000)
    for number in range(start, start + 60):
        bank.put(key_of(number), "x" * 200)
        assert bank.size <= 20_000
    bank.close()


def test_two_processes_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "bank.sqlite"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(path, start)) for start in (0, 1000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    with sqlite3.connect(path) as rows:
        held, total = rows.execute("SELECT sum(bytes), (SELECT bytes FROM total) FROM rows").fetchone()
    rows.close()
    # a row is 200 letters, two quotes and 160: 55 of them fit
    assert held == total == 55 * (202 + ROW)


def _make(folder: Path, together: Barrier) -> None:
    failed = []
    for number in range(100):
        together.wait(60)
        try:
            Bank(folder / f"{number}.sqlite", 1000).close()
        except OSError as error:  # not raised at once, or the other would wait for this one
            failed.append(error)
    assert not failed


def test_two_processes_make_one_file_at_one_time(tmp_path: Path) -> None:
    """Engines with one volume: SQLite sometimes refused one of them, whatever patience it was asked for."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(2)
    workers = [context.Process(target=_make, args=(tmp_path, together)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_rows_that_somebody_deleted_do_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "bank.sqlite"
    bank = Bank(path, 1000)
    bank.put(KEYS[0], "x" * 800)
    with sqlite3.connect(path) as rows:
        rows.execute("DELETE FROM rows")
    rows.close()
    bank.put(KEYS[1], "y" * 700)
    bank.put(KEYS[2], "z")
    assert bank.get(KEYS[2]) == "z"
    assert bank.size <= 1000
    bank.close()


async def test_pages_that_break_while_it_is_used_are_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It used to stay: every look at the rows in them failed, after each restart again."""
    path = tmp_path / "bank.sqlite"
    bank = Bank(path, 1_000_000)
    for number in range(100):
        bank.put(key_of(number), "x" * 2000)
    bank.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: 3 * 4096] + b"\x55" * (len(whole) - 3 * 4096))
    bank, other = Bank(path, 1_000_000), Bank(path, 1_000_000)
    assert await bank.find(key_of(1)) is None
    assert "is put aside" in caplog.text
    assert path.with_name("bank.sqlite.broken").stat().st_size == len(whole)
    await bank.keep(key_of(1), "new")
    assert await other.find(key_of(2)) is None  # the other one does not put the new file aside
    assert await bank.find(key_of(1)) == await other.find(key_of(1)) == "new"
    bank.close()
    other.close()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank.sqlite", 1_000_000)
    bank.put(KEYS[0], "kept")
    bank._rows.execute("PRAGMA max_page_count = 12")

    def fill() -> None:
        for number in range(100):
            bank.put(key_of("more", number), "x" * 3000)

    with pytest.raises(sqlite3.OperationalError, match="full"):
        fill()
    held = bank.size
    assert bank.get(KEYS[0]) == "kept"
    bank._rows.execute("PRAGMA max_page_count = 1000")
    bank.put(KEYS[1], "x")
    assert bank.size == held + 3 + ROW
    bank.close()


def test_a_smaller_room_holds_from_the_start(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank.sqlite", 10_000)
    for key in KEYS:
        bank.put(key, "x" * 100)
    bank.close()
    bank = Bank(tmp_path / "bank.sqlite", 2 * (102 + ROW))
    assert bank.size == 2 * (102 + ROW)
    assert [bank.get(key) is None for key in KEYS] == [True] * 4 + [False] * 2
    bank.close()
    bank = Bank(tmp_path / "bank.sqlite", 1)
    assert bank.size == 0
    bank.close()
