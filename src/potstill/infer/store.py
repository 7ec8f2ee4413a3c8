"""The cached answers and their vectors in SQLite: the exact layer, and what every index can be rebuilt from.

Several processes may read and write (WAL). Row numbers are never used twice, so that an index that lags behind can name
an entry that is gone, but never a wrong one.
"""

from __future__ import annotations

import sqlite3
import sys
import time
import uuid
from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from potstill.errors import InputError, MachineError
from potstill.infer.encoder import Vector

APPLICATION_ID = 0x506F7443  # "PotC"
SCHEMA_VERSION = 1
BUSY_S = 30.0
BUSY_STEP_S = 0.02
SCHEMA = """
CREATE TABLE about (store_id TEXT NOT NULL) STRICT;
CREATE TABLE entries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    scope TEXT NOT NULL,
    namespace TEXT NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    route TEXT NOT NULL,
    model TEXT,
    created REAL NOT NULL,
    hits INTEGER NOT NULL DEFAULT 0,
    last_hit REAL
) STRICT;
CREATE TABLE vectors (
    number INTEGER NOT NULL REFERENCES entries (number) ON DELETE CASCADE,
    encoder TEXT NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (encoder, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE rounds (id TEXT PRIMARY KEY, dropped INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
COLUMNS = "number, id, scope, namespace, question, answer, route, model, created, hits"
DROPPED = (
    "INSERT INTO rounds SELECT id, 1 FROM entries WHERE {condition}"
    " ON CONFLICT (id) DO UPDATE SET dropped = dropped + 1"
)


@dataclass(frozen=True)
class Fresh:
    """An answer that is about to be stored. `id` is the exact key; `route` and `model` say where it came from."""

    id: str
    scope: str
    namespace: str
    question: str
    answer: str
    route: str
    model: str | None


@dataclass(frozen=True)
class Entry(Fresh):
    """A stored answer. `created` is in Unix seconds; `hits` counts how often it was served."""

    number: int
    created: float
    hits: int


@dataclass(frozen=True)
class NamespaceStatistics:
    """What one namespace holds."""

    namespace: str
    entries: int
    hits: int


@dataclass(frozen=True)
class StoredVector:
    """The vector of one entry."""

    number: int
    scope: str
    vector: Vector


class EntryStore:
    """The entries of one cache folder. Use it as a context manager; not to be shared between threads."""

    def __init__(self, path: Path, *, ttl_s: int | None = None) -> None:
        """Open or create the file; raises MachineError where that fails, InputError for a file of another kind."""
        self._ttl_s = ttl_s
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _opened(path)
        except sqlite3.OperationalError as error:
            raise _unusable(error) from error
        except sqlite3.DatabaseError as error:
            message = f"{path} is not a readable cache: {error}"
            raise InputError(
                message, hint="choose another cache.path, or delete the file: it is only a cache"
            ) from error
        except OSError as error:
            message = f"cannot create {path}: {error.strerror}"
            raise MachineError(message) from error
        self.id = str(self._connection.execute("SELECT store_id FROM about").fetchone()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def put(self, fresh: Fresh, now: float, vectors: dict[str, Vector] | None = None) -> Entry:
        """Store an answer in place of an older one to the same question; `vectors` by encoder id."""
        with _Transaction(self._connection) as connection:
            connection.execute("DELETE FROM entries WHERE id = ?", (fresh.id,))
            number = connection.execute(
                "INSERT INTO entries (id, scope, namespace, question, answer, route, model, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (fresh.id, fresh.scope, fresh.namespace, fresh.question, fresh.answer, fresh.route, fresh.model, now),
            ).lastrowid
            connection.executemany(
                "INSERT INTO vectors VALUES (?, ?, ?)",
                [(number, encoder, _packed(vector)) for encoder, vector in (vectors or {}).items()],
            )
        found = self.by_number(int(number or 0), fresh.scope, now)
        if found is None:
            message = f"{fresh.id} was removed while it was stored"
            raise MachineError(message)
        return found

    def exact(self, identity: str, scope: str, now: float) -> Entry | None:
        """The live entry of an exact key in its scope."""
        return self._one("id = ?", identity, scope, now)

    def by_number(self, number: int, scope: str, now: float) -> Entry | None:
        """The live entry that an index named, if it stands in this scope."""
        return self._one("number = ?", number, scope, now)

    def served(self, entry: Entry, now: float) -> None:
        """Count a hit. It does not make the entry any younger."""
        with _Transaction(self._connection) as connection:
            connection.execute("UPDATE entries SET hits = hits + 1, last_hit = ? WHERE number = ?", (now, entry.number))

    def rounds(self, identity: str) -> int:
        """How often an answer to this question was dropped: the next one must be asked for anew."""
        row = self._connection.execute("SELECT dropped FROM rounds WHERE id = ?", (identity,)).fetchone()
        return int(row[0]) if row else 0

    def forget(self, identity: str) -> bool:
        """Drop one answer; False where there is none of that id."""
        return self._drop("id = ?", identity) > 0

    def drop_expired(self, now: float) -> int:
        """Drop what is older than the time to live, counted from its creation; how many that were."""
        return 0 if self._ttl_s is None else self._drop("created <= ?", now - self._ttl_s)

    def statistics(self) -> tuple[NamespaceStatistics, ...]:
        """Entries and hits by namespace."""
        rows = self._connection.execute(
            "SELECT namespace, count(*), sum(hits) FROM entries GROUP BY namespace ORDER BY namespace"
        )
        return tuple(NamespaceStatistics(*row) for row in rows)

    def version(self, encoder: str) -> tuple[int, int]:
        """Changes whenever vectors of an encoder come or go, in whichever process."""
        row = self._connection.execute(
            "SELECT coalesce(max(number), 0), count(*) FROM vectors WHERE encoder = ?", (encoder,)
        ).fetchone()
        return int(row[0]), int(row[1])

    def numbers(self, encoder: str) -> set[int]:
        """All entries that have a vector of this encoder."""
        rows = self._connection.execute("SELECT number FROM vectors WHERE encoder = ?", (encoder,))
        return {int(row[0]) for row in rows}

    def vectors(self, encoder: str, numbers: Sequence[int]) -> list[StoredVector]:
        """The vectors of some entries; entries that are gone are left out."""
        query = "SELECT number, scope, vector FROM vectors JOIN entries USING (number) WHERE encoder = ? AND number = ?"
        found = (self._connection.execute(query, (encoder, number)).fetchone() for number in numbers)
        return [StoredVector(row[0], row[1], _unpacked(row[2])) for row in found if row is not None]

    def exclusive(self) -> AbstractContextManager[sqlite3.Connection]:
        """While this is held, no other process writes here, or holds it too. Not to be nested with writing."""
        return _Transaction(self._connection)

    def _one(self, condition: str, value: str | int, scope: str, now: float) -> Entry | None:
        youngest = now - self._ttl_s if self._ttl_s is not None else float("-inf")
        row = self._connection.execute(
            f"SELECT {COLUMNS} FROM entries WHERE {condition} AND scope = ? AND created > ?",  # noqa: S608  (constants)
            (value, scope, youngest),
        ).fetchone()
        names = [name.strip() for name in COLUMNS.split(",")]
        return Entry(**dict(zip(names, row, strict=True))) if row else None

    def _drop(self, condition: str, value: Any) -> int:
        with _Transaction(self._connection) as connection:
            connection.execute(DROPPED.format(condition=condition), (value,))
            return connection.execute(f"DELETE FROM entries WHERE {condition}", (value,)).rowcount  # noqa: S608  (constants)


class _Transaction:
    """BEGIN IMMEDIATE, then COMMIT, or ROLLBACK where something was raised."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise _unusable(error) from error
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.OperationalError):
            raise _unusable(error) from error


def read_statistics(path: Path) -> tuple[NamespaceStatistics, ...]:
    """Statistics of a cache that is only read; a missing file holds nothing."""
    if not path.is_file():
        return ()
    with closing(EntryStore(path)) as store:
        return store.statistics()


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    with _Transaction(connection):
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO about VALUES (?)", (uuid.uuid4().hex,))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            version = SCHEMA_VERSION
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
    if owner != APPLICATION_ID or version != SCHEMA_VERSION:
        message = f"{path} is not a cache of this version of potstill"
        raise InputError(message, hint="choose another cache.path, or delete the file: it is only a cache")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite's own timeout does not cover it: of two first openers one is refused at once."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(BUSY_STEP_S)


def _unusable(error: sqlite3.OperationalError) -> MachineError:
    return MachineError(f"the cache cannot be used: {error}", hint="is the disk full, or the folder read-only?")


def _packed(vector: Vector) -> bytes:
    """Little-endian float32, whatever the machine."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _unpacked(data: bytes) -> Vector:
    values = array("f")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)
