"""The SQLite file of a cache: opening it, its tables, and transactions that several processes may hold in turn."""

from __future__ import annotations

import sqlite3
import time
import uuid
from pathlib import Path
from types import TracebackType

from potstill.errors import InputError, MachineError

APPLICATION_ID = 0x506F7443  # "PotC"
SCHEMA_VERSION = 3
BUSY_S = 5.0
"""Seconds to wait for another writer: a question should not wait longer for its cache."""
BUSY_STEP_S = 0.02
SCHEMA = """
CREATE TABLE about (store_id TEXT NOT NULL) STRICT;
CREATE TABLE scopes (id TEXT PRIMARY KEY, about TEXT NOT NULL) STRICT, WITHOUT ROWID;
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
    last_hit REAL,
    floor REAL NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX entries_by_use ON entries (coalesce(last_hit, created));
CREATE TABLE vectors (
    number INTEGER NOT NULL REFERENCES entries (number) ON DELETE CASCADE,
    encoder TEXT NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (number, encoder)
) STRICT;
CREATE TABLE changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    encoder TEXT NOT NULL,
    number INTEGER NOT NULL,
    gone INTEGER NOT NULL
) STRICT;
CREATE TRIGGER vector_came AFTER INSERT ON vectors
    BEGIN INSERT INTO changes (encoder, number, gone) VALUES (new.encoder, new.number, 0); END;
CREATE TRIGGER vector_went AFTER DELETE ON vectors
    BEGIN INSERT INTO changes (encoder, number, gone) VALUES (old.encoder, old.number, 1); END;
CREATE TABLE indexed (name TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE rounds (id TEXT PRIMARY KEY, dropped INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE judged (
    at REAL NOT NULL,
    source TEXT NOT NULL,
    namespace TEXT NOT NULL,
    question TEXT NOT NULL,
    cached TEXT NOT NULL,
    fits INTEGER NOT NULL
) STRICT;
"""


def open_database(path: Path | None) -> sqlite3.Connection:
    """Open or create the file; raises InputError for one of another kind, MachineError or OSError where that fails."""
    connection = sqlite3.connect(path or ":memory:", timeout=BUSY_S, isolation_level=None)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path | None) -> None:
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    with Transaction(connection):
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


def unusable(error: sqlite3.OperationalError) -> MachineError:
    """What a full disk, a read-only folder or an endless lock is told as."""
    return MachineError(f"the cache cannot be used: {error}", hint="is the disk full, or the folder read-only?")


class Transaction:
    """BEGIN IMMEDIATE, then COMMIT, or ROLLBACK where something was raised."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise unusable(error) from error
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.OperationalError):
            raise unusable(error) from error
