"""Attempts as records, from a ledger that is only read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from potstill.ledger.entries import StoredReply
from potstill.ledger.money import from_pico
from potstill.ledger.schema import connect_to_read, unreadable
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
        with closing(connect_to_read(path)) as connection:
            return list(select_attempts(connection))
    except sqlite3.DatabaseError as error:
        raise unreadable(path, error) from error


ABANDONED = "WHERE status = 'open' AND (job IS NULL OR job IN (SELECT id FROM jobs WHERE status = 'ended'))"
"""Sent, and no batch job waits for an answer any more."""


def select_attempts(connection: sqlite3.Connection, where: str = "") -> Iterator[Attempt]:
    """Attempts in the order in which they were made; `where` is one of this module's constants."""
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


def find_answer(connection: sqlite3.Connection, key: str) -> StoredReply | None:
    """The newest answer that was paid for under a key, if there is one."""
    row = connection.execute(
        "SELECT reply, cost, price_id, latency_s, finished_at FROM attempts"
        " WHERE key = ? AND status = 'done' ORDER BY id DESC LIMIT 1",
        (key,),
    ).fetchone()
    if row is None:
        return None
    reply, cost, price_id, latency_s, finished_at = row
    return StoredReply(reply, from_pico(cost), price_id or "", latency_s, datetime.fromisoformat(finished_at))


@dataclass(frozen=True)
class Answered:
    """A request's body and its raw reply."""

    key: str
    role: str | None
    model: str
    body: dict[str, Any]
    reply: str
    cost_usd: Decimal
    answered_at: datetime


class LedgerView:
    """A ledger that is only read; a missing file is an empty one. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        if self._path.is_file():
            self._connection = connect_to_read(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise unreadable(self._path, error) from error

    def has(self, key: str) -> bool:
        """Whether this work was paid for."""
        return bool(self._rows("SELECT 1 FROM attempts WHERE key = ? AND status = 'done' LIMIT 1", key))

    def answer(self, key: str) -> StoredReply | None:
        """The answer that was paid for earlier under this key, if there is one."""
        return None if self._connection is None else find_answer(self._connection, key)

    def outputs(self, model: str, command: str, most: int, *, but_limit: int | None = None) -> list[tuple[int, int]]:
        """Tokens of text and of thinking of the newest answers of a model, but those asked for with one output limit."""
        query = (
            "SELECT output_tokens, thinking_tokens FROM attempts WHERE status = 'done' AND model = ?1 AND command = ?2"
            " AND (?3 IS NULL OR json_extract(request, '$.body.generationConfig.maxOutputTokens') <> ?3)"
            " ORDER BY id DESC LIMIT ?4"
        )
        return self._rows(query, model, command, but_limit, most)

    def latency_s(self, model: str) -> float | None:
        """Mean seconds of the newest answers of a model that came one by one."""
        query = (
            "SELECT avg(latency_s) FROM (SELECT latency_s FROM attempts WHERE status = 'done' AND model = ?"
            " AND service <> 'batch' ORDER BY id DESC LIMIT 200)"
        )
        rows = self._rows(query, model)
        return rows[0][0] if rows else None

    def committed(self) -> Decimal:
        """Dollars that were spent or are reserved."""
        rows = self._rows("SELECT spent + reserved FROM totals")
        return from_pico(rows[0][0]) if rows else Decimal(0)

    def attempts(self) -> int:
        """How many attempts there were."""
        rows = self._rows("SELECT max(id) FROM attempts")
        return (rows[0][0] or 0) if rows else 0

    def committed_by(self, command: str) -> Decimal:
        """Dollars that attempts of one command cost, or hold while they have no answer."""
        query = "SELECT sum(CASE status WHEN 'open' THEN reserved ELSE cost END) FROM attempts WHERE command = ?"
        if self._rows("SELECT 1 FROM sqlite_master WHERE name = 'by_command'"):
            query = "SELECT committed FROM by_command WHERE command = ?"
        rows = self._rows(query, command)
        return from_pico(rows[0][0] or 0) if rows else Decimal(0)

    def answered(self, command: str) -> Iterator[Answered]:
        """What a command asked and was answered, in the order in which it was asked."""
        query = (
            "SELECT key, role, model, request, reply, cost, finished_at FROM attempts"
            " WHERE command = ? AND status = 'done' ORDER BY id"
        )
        if self._connection is None:
            return
        for key, role, model, request, reply, cost, at in self._connection.execute(query, (command,)):
            body = json.loads(request)["body"]
            yield Answered(key, role, model, body, reply, from_pico(cost), datetime.fromisoformat(at))

    def shared(self, scope: str) -> str | None:
        """The state that processes share under a scope."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'shared'"):
            return None
        rows = self._rows("SELECT state FROM shared WHERE scope = ?", scope)
        return rows[0][0] if rows else None

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return [] if self._connection is None else self._connection.execute(query, values).fetchall()
