"""Who is working on a question, among all processes that share a cache: a row with a lease.

A claim ends when it is released, or when its lease runs out because its owner was killed: nobody is blocked for longer.
"""

from __future__ import annotations

import sqlite3
import uuid

from potstill.infer.database import Transaction

LEASE_S = 10.0
"""How long a claim lasts unless it is renewed."""
RENEW_S = LEASE_S / 4
LOOK_S = 0.1
"""How often one who waits looks again: 50 microseconds each."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS claims (id TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL) STRICT, WITHOUT ROWID
"""
TAKE = """
INSERT INTO claims VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, until = excluded.until
WHERE until <= ? OR until > ? OR owner = excluded.owner
"""


class Claims:
    """The claims of one process. Times are Unix seconds."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._owner = uuid.uuid4().hex
        with Transaction(connection):
            connection.execute(SCHEMA)

    def take(self, key: str, now: float) -> bool:
        """Claim a question; False while another process holds it.

        A lease that ends later than any that began lately was taken before the clock was set back: it is void.
        """
        with Transaction(self._connection) as connection:
            values = (key, self._owner, now + LEASE_S, now, now + 2 * LEASE_S)
            return connection.execute(TAKE, values).rowcount > 0

    def renew(self, key: str, now: float) -> None:
        """Hold a question for longer."""
        with Transaction(self._connection) as connection:
            change = "UPDATE claims SET until = ? WHERE id = ? AND owner = ?"
            connection.execute(change, (now + LEASE_S, key, self._owner))

    def release(self, key: str) -> None:
        """Let go of a question."""
        with Transaction(self._connection) as connection:
            connection.execute("DELETE FROM claims WHERE id = ? AND owner = ?", (key, self._owner))
