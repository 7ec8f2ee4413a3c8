"""The ledger's file: its tables, how it is opened, and how an older one is brought up to date."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from potstill.errors import InputError, MachineError, PotstillError

APPLICATION_ID = 0x506F7473  # "Pots"
SCHEMA_VERSION = 4
BUSY_S = 30.0
DISK = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}

ATTEMPTS = """
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    command TEXT NOT NULL,
    role TEXT,
    model TEXT NOT NULL,
    service TEXT NOT NULL,
    request TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('open', 'done', 'failed')),
    reason TEXT,
    reserved INTEGER NOT NULL,
    cost INTEGER NOT NULL DEFAULT 0,
    price_id TEXT,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    thinking_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    reply TEXT,
    latency_s REAL,
    started_at TEXT NOT NULL,
    finished_at TEXT
) STRICT;
CREATE INDEX attempts_by_key ON attempts (key, status);
CREATE INDEX attempts_by_time ON attempts (started_at);
CREATE TABLE totals (one INTEGER PRIMARY KEY CHECK (one = 1), spent INTEGER NOT NULL, reserved INTEGER NOT NULL) STRICT;
INSERT INTO totals VALUES (1, 0, 0);
"""
"""Version 1."""

SHARED = """
ALTER TABLE attempts ADD COLUMN job INTEGER;
CREATE INDEX attempts_open ON attempts (job) WHERE status = 'open';
CREATE TABLE shared (scope TEXT PRIMARY KEY, state TEXT NOT NULL) STRICT;
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    label TEXT NOT NULL UNIQUE,
    model TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('planned', 'uploaded', 'submitted', 'ended')),
    file TEXT,
    name TEXT,
    created_at TEXT NOT NULL
) STRICT;
CREATE TABLE plans (plan TEXT PRIMARY KEY, cells INTEGER NOT NULL, first_open INTEGER NOT NULL) STRICT;
CREATE TABLE holes (
    plan TEXT NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (plan, position)
) STRICT, WITHOUT ROWID;
"""
"""Version 2: state that processes share, batch jobs, and how far each plan is."""

BY_COMMAND = """
CREATE TABLE by_command (command TEXT PRIMARY KEY, committed INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO by_command SELECT command, sum(CASE status WHEN 'open' THEN reserved ELSE cost END) FROM attempts
 GROUP BY command;
CREATE TRIGGER committed_more AFTER INSERT ON attempts BEGIN INSERT INTO by_command
 VALUES (NEW.command, CASE NEW.status WHEN 'open' THEN NEW.reserved ELSE NEW.cost END)
 ON CONFLICT (command) DO UPDATE SET committed = committed + excluded.committed; END;
CREATE TRIGGER committed_less AFTER UPDATE OF status ON attempts WHEN OLD.status = 'open' AND NEW.status <> 'open'
 BEGIN UPDATE by_command SET committed = committed - OLD.reserved + NEW.cost WHERE command = NEW.command; END;
"""
"""Version 3: what each command has spent and reserved, so that a step's own budget is checked in no time."""

OWNERS = "ALTER TABLE attempts ADD COLUMN owner TEXT"
"""Version 4: who has an attempt in flight. An attempt of an earlier version, or of a batch job, has no owner."""

STEPS = (ATTEMPTS, SHARED, BY_COMMAND, OWNERS)


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose commits are on disk when they return."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing; raises InputError or MachineError for a file that cannot be opened."""
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
    except sqlite3.OperationalError as error:
        raise unreadable(path, error) from error


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or bring those of an older version up to date; raises InputError for a foreign file."""
    _use_wal(connection)
    with connection:  # all steps or none: half a migration could not be gone on with
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (tables or version) and (owner != APPLICATION_ID or not 0 < version <= SCHEMA_VERSION):
            message = f"{path} is not a ledger of this version of potstill"
            raise InputError(message, hint="choose another workspace with -w/--workspace")
        for step in STEPS[version:]:
            for statement in step.split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def names_owners(connection: sqlite3.Connection) -> bool:
    """Whether a ledger that is only read says who has an attempt in flight: version 4 does."""
    return bool(connection.execute("PRAGMA user_version").fetchone()[0] > STEPS.index(OWNERS))


def unreadable(path: Path, error: sqlite3.Error) -> PotstillError:
    """What SQLite said about a file that is no ledger, or about a disk that does not let it work."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in DISK:
        message = f"the ledger {path} cannot be opened: {error}"
        return MachineError(message, hint="is the folder read-only, or the disk full?")
    return InputError(f"{path} is not a readable ledger: {error}", hint="restore it, or choose another -w/--workspace")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL. The switch ignores the busy timeout, so that two first openers at once have to take turns here."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
