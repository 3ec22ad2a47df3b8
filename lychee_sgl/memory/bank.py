"""Keeps finished steps on disk: content-addressed, within a byte budget, safe among threads, processes and crashes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

T = TypeVar("T")

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS rows (
    key BLOB PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL, bytes INTEGER NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON rows (used);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);
"""
_ROW_BYTES: Final = 160
"""Added to a row's value: key, checksum, numbers and the index, so that the budget is near what the file takes."""
_LOCK_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.01
_BROKEN: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Of a file that will not be read by trying again."""


def key_of(*parts: object) -> bytes:
    """Gives the address of what follows from `parts` alone.

    Args:
        parts: bytes, or what JSON can hold. Different parts never give the same bytes before they are hashed.
    """
    hashed = sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        hashed.update(b"%s%d:" % (b"b" if isinstance(part, bytes) else b"j", len(data)))
        hashed.update(data)
    return hashed.digest()


class Bank:
    """A table of values (JSON, or bytes) under 32-byte keys. Close it after use; several may use one file."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Opens or makes the file; one that is no bank, or broken, is put aside.

        Args:
            path: the file; its folder is made. Only its owner can read it.
            max_bytes: most bytes of all rows.

        Raises:
            ValueError: `max_bytes` is below 1.
            OSError: the folder cannot be made or written.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; allowed: 1 or more")
        self._path, self._max_bytes = path, max_bytes
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows, self._file = self._begin()
        with self._lock, contextlib.suppress(sqlite3.Error), self._transaction():
            self._evict(b"")  # it may have had more room the last time

    def _begin(self) -> tuple[sqlite3.Connection, int]:
        """Opens the file, one that is no bank put aside; gives its number on disk, too.

        Raises:
            OSError: it cannot be opened.
        """
        try:
            try:
                return self._open()
            except sqlite3.DatabaseError as error:
                if not _is_broken(error):
                    raise
                self._put_aside(error)
                return self._open()
        except sqlite3.DatabaseError as error:
            raise OSError(f"{self._path}: {error}") from error

    def _open(self) -> tuple[sqlite3.Connection, int]:
        """Opens the file. Whom SQLite refuses because another one opens it, too, tries again: here it does not wait."""
        last = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return self._open_once()
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > last:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def _open_once(self) -> tuple[sqlite3.Connection, int]:
        handle = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        number = os.fstat(handle).st_ino
        os.close(handle)
        rows = sqlite3.connect(self._path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            rows.execute("PRAGMA journal_mode = WAL")  # a crash leaves whole transactions
            rows.execute("PRAGMA synchronous = NORMAL")
            rows.executescript(_SCHEMA)
        except sqlite3.DatabaseError:
            rows.close()
            raise
        return rows, number

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        log.warning("%s is put aside, it cannot be read: %s", self._path, error)
        for end in ("-wal", "-shm"):
            self._path.with_name(self._path.name + end).unlink(missing_ok=True)
        self._path.replace(self._path.with_name(f"{self._path.name}.broken"))

    def _renew(self, error: sqlite3.DatabaseError) -> None:
        """Begins anew where pages turn out to be broken while it is in use: it would stay so for all rows in them."""
        self._rows.close()
        try:
            if self._path.stat().st_ino == self._file:  # else somebody who uses it, too, was first
                self._put_aside(error)
            self._rows, self._file = self._begin()
        except OSError as failed:
            log.warning("there is no bank any more: %s", failed)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._rows.close()

    @property
    def size(self) -> int:
        """What all rows take now."""
        with self._lock:
            return int(self._rows.execute("SELECT bytes FROM total").fetchone()[0])

    def get(self, key: bytes) -> Any:
        """Gives a value, and notes its use; None where there is none, or it is not what was put there."""
        data = self.get_bytes(key)
        return None if data is None else json.loads(data)

    def get_bytes(self, key: bytes) -> bytes | None:
        """`get` of what `put_bytes` has put."""
        with self._lock, self._transaction():
            found = self._rows.execute("SELECT value, digest FROM rows WHERE key = ?", (key,)).fetchone()
            if found is None:
                return None
            value, digest = found
            if _digest(key, value) != digest:
                log.warning("a row of the bank is broken and dropped")
                self._drop(key)
                return None
            self._rows.execute("UPDATE rows SET used = ? WHERE key = ?", (time.time_ns(), key))
        return bytes(value)

    def put(self, key: bytes, value: Any) -> None:
        """Keeps a value (JSON); drops the least lately used until all fit. One that is too large alone is not kept."""
        self.put_bytes(key, json.dumps(value, separators=(",", ":")).encode())

    def put_bytes(self, key: bytes, data: bytes) -> None:
        """`put` of bytes as they are."""
        size = len(data) + _ROW_BYTES
        if size > self._max_bytes:
            return
        with self._lock, self._transaction():
            self._drop(key)
            row = (key, data, _digest(key, data), size, time.time_ns())
            self._rows.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", row)
            self._rows.execute("UPDATE total SET bytes = bytes + ?", (size,))
            self._evict(key)

    def _drop(self, key: bytes) -> None:
        for (size,) in self._rows.execute("DELETE FROM rows WHERE key = ? RETURNING bytes", (key,)).fetchall():
            self._rows.execute("UPDATE total SET bytes = bytes - ?", (size,))

    def _evict(self, newest: bytes) -> None:
        while self._rows.execute("SELECT bytes FROM total").fetchone()[0] > self._max_bytes:
            others = "SELECT key FROM rows WHERE key != ? ORDER BY used LIMIT 1"
            oldest = self._rows.execute(others, (newest,)).fetchone()
            if oldest is None:  # it fits alone, so the sum is wrong: somebody has deleted rows past us
                self._rows.execute("UPDATE total SET bytes = (SELECT coalesce(sum(bytes), 0) FROM rows)")
                return
            self._drop(oldest[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._rows.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._rows.execute("COMMIT")  # which can fail, too: a full disk
            finally:
                if self._rows.in_transaction:
                    self._rows.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            if _is_broken(error):
                self._renew(error)
            raise

    async def find(self, key: bytes) -> Any:
        """`get` for an event loop; a bank that cannot be read is a bank without the row."""
        return await _found(self.get, key)

    async def keep(self, key: bytes, value: Any) -> None:
        """`put` for an event loop; a bank that cannot be written costs its use, no answer."""
        await _kept(self.put, key, value)

    async def find_bytes(self, key: bytes) -> bytes | None:
        """`find` of what `keep_bytes` has kept."""
        return await _found(self.get_bytes, key)

    async def keep_bytes(self, key: bytes, data: bytes) -> None:
        """`keep` of bytes as they are."""
        await _kept(self.put_bytes, key, data)


async def _found(get: Callable[[bytes], T], key: bytes) -> T | None:
    try:
        return await asyncio.to_thread(get, key)
    except sqlite3.Error as error:
        log.warning("the bank cannot be read: %s", error)
        return None


async def _kept(put: Callable[[bytes, T], None], key: bytes, value: T) -> None:
    try:
        await asyncio.to_thread(put, key, value)
    except sqlite3.Error as error:
        log.warning("the bank cannot be written: %s", error)


def _is_broken(error: sqlite3.DatabaseError) -> bool:
    """Whether it says that the file is no database, or not a whole one."""
    return _code(error) in _BROKEN


def _code(error: sqlite3.Error) -> int:
    """SQLite's number for it, without what tells kinds of it apart; 0 where it has none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _digest(key: bytes, value: bytes) -> bytes:
    return sha256(key + value).digest()
