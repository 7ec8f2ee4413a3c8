"""Which processes are at work on a ledger: each holds a lock that ends with it, even where it is killed.

The lock is SQLite's own on an empty file beside the ledger: it works wherever the ledger does, also between containers
that share a folder, whose process ids say nothing to each other.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path

INFIX = "-owner-"
IN_FLIGHT = "SELECT id, owner FROM attempts WHERE status = 'open' AND finished_at IS NULL AND owner IS NOT NULL"


class Owners:
    """The owners of attempts in the ledger at `path`: this opener of it, and others."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = uuid.uuid4().hex
        self._lock: sqlite3.Connection | None = None

    def mine(self) -> str:
        """The name of this opener, alive from the first call until `close`."""
        if self._lock is None:
            self._lock = sqlite3.connect(self._file(self.name), isolation_level=None, check_same_thread=False)
            self._lock.execute("PRAGMA journal_mode = MEMORY")  # there is nothing to roll back: no second file
            self._lock.execute("BEGIN EXCLUSIVE")
        return self.name

    def is_alive(self, name: str) -> bool:
        """Whether an owner is at work still."""
        file = self._file(name)
        try:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=0)) as look:
                look.execute("PRAGMA schema_version").fetchone()
        except sqlite3.OperationalError as error:
            return error.sqlite_errorcode == sqlite3.SQLITE_BUSY
        return False

    def in_flight(self, connection: sqlite3.Connection) -> set[int]:
        """The attempts whose reply somebody who is at work waits for."""
        rows = connection.execute(IN_FLIGHT).fetchall()
        alive = {owner for owner in {owner for _, owner in rows} if self.is_alive(owner)}
        return {attempt for attempt, owner in rows if owner in alive}

    def sweep(self) -> None:
        """Remove what killed owners left; a file of the last minute may be about to be locked."""
        for file in self._path.parent.glob(f"{self._path.name}{INFIX}*"):
            with suppress(OSError):
                if file.stat().st_mtime < time.time() - 60 and not self.is_alive(file.name.partition(INFIX)[2]):
                    file.unlink()

    def close(self) -> None:
        """Be at work no longer."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            with suppress(OSError):
                self._file(self.name).unlink()

    def _file(self, name: str) -> Path:
        return self._path.with_name(f"{self._path.name}{INFIX}{name}")
