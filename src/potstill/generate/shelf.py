"""What a run collects, on disk instead of in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Generic, TypeVar

from potstill.records import Record

Item = TypeVar("Item", bound=Record)
CACHE_KIB = 24_576
"""Memory for a temporary database's pages; what is more goes to disk."""


def temporary_database() -> sqlite3.Connection:
    """A database of this process's own, in memory while it is small; it is gone when it is closed."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    database.execute("BEGIN")
    return database


class Shelf(Generic[Item]):
    """Records of one kind in the order in which they came, in a table of a temporary database."""

    def __init__(self, database: sqlite3.Connection, table: str, kind: type[Item]) -> None:
        """`table`: a name that no other shelf of the database has, from the code."""
        self._database, self._table, self._kind = database, table, kind
        self._count = 0
        database.execute(f"CREATE TABLE {table} (number INTEGER PRIMARY KEY, line TEXT)")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        return map(self.__getitem__, range(self._count))

    def __getitem__(self, number: int) -> Item:
        query = f"SELECT line FROM {self._table} WHERE number = ?"  # noqa: S608  (a constant of the code)
        return self._kind.model_validate_json(self._database.execute(query, (number,)).fetchone()[0])

    def append(self, item: Item) -> None:
        """Put a record at the end."""
        insert = f"INSERT INTO {self._table} VALUES (?, ?)"  # noqa: S608  (a constant of the code)
        self._database.execute(insert, (self._count, item.model_dump_json()))
        self._count += 1
