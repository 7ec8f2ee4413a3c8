"""A ledger summed up by SQLite: as many rows as there are groups, not as there are attempts. Reads only."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path

from potstill.ledger.entries import BY_BILL
from potstill.ledger.money import from_pico
from potstill.ledger.owners import Owners
from potstill.ledger.schema import connect_to_read, names_owners, unreadable
from potstill.records import Usage

SUMS = """
SELECT substr(started_at, 1, 10), command, role, model, service, status, {under_way},
       coalesce(reason = '{by_bill}', 0), count(*), sum(cost), sum(reserved),
       sum(input_tokens), sum(output_tokens), sum(thinking_tokens), sum(cached_tokens)
FROM attempts GROUP BY 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY 1, 2, 3, 4, 5, 6, 7, 8
"""
"""`started_at` is UTC. Picodollars are summed as integers, exactly."""
UNDER_WAY = """
status = 'open' AND (id IN (SELECT value FROM json_each(?)) OR job IN (SELECT id FROM jobs WHERE status <> 'ended'))
"""
"""Given the attempts that a process has in flight."""


@dataclass(frozen=True)
class Sum:
    """The attempts of one day, command, role, model, service and status: how many, tokens, dollars.

    `under_way`: open ones that a process at work, or a batch job, will answer; the other open ones are possibly paid.
    `by_bill`: failed ones that were closed, and priced, by the teacher's bill.
    """

    day: date
    command: str
    role: str | None
    model: str
    service: str
    status: str
    count: int
    usage: Usage
    cost_usd: Decimal
    reserved_usd: Decimal
    under_way: bool = False
    by_bill: bool = False


@dataclass(frozen=True)
class Lengths:
    """One answer: its role and its tokens."""

    role: str
    output_tokens: int


class PaidWork:
    """What a ledger holds of answers, asked by key or by model; an empty one where there is no file."""

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection

    @property
    def empty(self) -> bool:
        """Whether nothing was answered yet."""
        return not self._rows("SELECT 1 FROM attempts WHERE status = 'done' LIMIT 1")

    def input_tokens(self, key: str) -> int | None:
        """Input tokens that the answer under this key was billed for; None where there is no answer."""
        rows = self._rows("SELECT input_tokens FROM attempts WHERE key = ? AND status = 'done' LIMIT 1", key)
        return int(rows[0][0]) if rows else None

    def lengths(self, model: str, command: str, most: int) -> tuple[Lengths, ...]:
        """Output tokens, thinking included, of the newest answers of a command by a model, at most so many a role."""
        query = (
            "SELECT role, tokens FROM (SELECT role, output_tokens + thinking_tokens AS tokens, id,"
            " row_number() OVER (PARTITION BY role ORDER BY id DESC) AS rank FROM attempts"
            " WHERE status = 'done' AND model = ? AND command = ?) WHERE rank <= ? ORDER BY id"
        )
        return tuple(Lengths(role or "-", int(tokens)) for role, tokens in self._rows(query, model, command, most))

    def _rows(self, query: str, *values: str | int) -> list[tuple[str, int]]:
        return [] if self._connection is None else self._connection.execute(query, values).fetchall()


def read_sums(path: Path) -> list[Sum]:
    """The ledger by group; a missing file has none. Raises InputError for a file that is no ledger."""
    with _reading(path) as connection:
        if connection is None:
            return []
        if not names_owners(connection):
            return [_sum(row) for row in connection.execute(SUMS.format(under_way="0", by_bill=BY_BILL))]
        flying = json.dumps(sorted(Owners(path).in_flight(connection)))
        return [_sum(row) for row in connection.execute(SUMS.format(under_way=UNDER_WAY, by_bill=BY_BILL), (flying,))]


@contextmanager
def paid_work(path: Path) -> Iterator[PaidWork]:
    """The answers of a ledger that is only read; raises InputError for a file that is no ledger."""
    with _reading(path) as connection:
        yield PaidWork(connection)


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    if not path.is_file():
        yield None
        return
    connection = connect_to_read(path)
    try:
        yield connection
    except sqlite3.DatabaseError as error:
        raise unreadable(path, error) from error
    finally:
        connection.close()


def _sum(row: tuple[str, str, str | None, str, str, str, int | None, int, int, int, int, int, int, int, int]) -> Sum:
    day, command, role, model, service, status, under_way, by_bill, count, cost, reserved, *tokens = row
    usage = Usage(input_tokens=tokens[0], output_tokens=tokens[1], thinking_tokens=tokens[2], cached_tokens=tokens[3])
    spent, held = from_pico(cost), from_pico(reserved)
    at = date.fromisoformat(day)
    return Sum(at, command, role, model, service, status, count, usage, spent, held, bool(under_way), bool(by_bill))
