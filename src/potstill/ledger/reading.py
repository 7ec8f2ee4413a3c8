"""Attempts as records, from a ledger that is only read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

from potstill.ledger.money import from_pico
from potstill.ledger.schema import BUSY_S, unreadable
from potstill.records import Attempt, Usage

COLUMNS = (
    "id, key, command, role, model, service, status, reason, reserved, cost, price_id,"
    " input_tokens, output_tokens, thinking_tokens, cached_tokens, started_at, finished_at"
)


def read_attempts(path: Path) -> list[Attempt]:
    """All attempts of a ledger that is only read; a missing file has none. Raises InputError for a file that is none."""
    if not path.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)) as connection:
            return list(select_attempts(connection))
    except sqlite3.DatabaseError as error:
        raise unreadable(path, error) from error


def select_attempts(connection: sqlite3.Connection, *, only_open: bool = False) -> Iterator[Attempt]:
    """Attempts in the order in which they were made."""
    where = "WHERE status = 'open'" if only_open else ""
    for row in connection.execute(f"SELECT {COLUMNS} FROM attempts {where} ORDER BY id"):  # noqa: S608  (constants)
        identity, key, command, role, model, service, status, reason, reserved, cost, price_id, *rest = row
        yield Attempt(
            id=identity,
            key=key,
            command=command,
            role=role,
            model=model,
            service=service,
            status=status,
            reason=reason,
            reserved_usd=from_pico(reserved),
            cost_usd=from_pico(cost),
            price_id=price_id,
            usage=Usage(input_tokens=rest[0], output_tokens=rest[1], thinking_tokens=rest[2], cached_tokens=rest[3]),
            started_at=datetime.fromisoformat(rest[4]),
            finished_at=datetime.fromisoformat(rest[5]) if rest[5] else None,
        )
