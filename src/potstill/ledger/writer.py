"""The thread that writes: operations that wait together are committed together.

A commit that is on disk costs milliseconds, an operation microseconds; committing in groups makes the difference.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from potstill.errors import MachineError, PotstillError
from potstill.ledger.schema import connect

GROUP = 256
"""Operations committed together at most."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Operation:
    work: Callable[[sqlite3.Connection], Any]
    future: Future[Any]


class Writer:
    """Runs operations on a connection of its own, in order, each on disk before its caller hears of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._operations: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    async def submit(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run one operation. A PotstillError that it raises, before it has written anything, comes back alone."""
        future: Future[Any] = Future()
        self._operations.put(_Operation(work, future))
        # Shielded: a cancelled caller must not leave the writer with a future that it cannot resolve.
        result: Result = await asyncio.shield(asyncio.wrap_future(future))
        return result

    def close(self) -> None:
        """Commit what is waiting and end the thread."""
        self._operations.put(None)
        self._thread.join()

    def _write(self) -> None:
        with closing(connect(self._path)) as connection:
            while (first := self._operations.get()) is not None:
                group, ended = self._drain(first)
                _commit(connection, group)
                if ended:
                    return

    def _drain(self, first: _Operation) -> tuple[list[_Operation], bool]:
        group = [first]
        while len(group) < GROUP:
            try:
                operation = self._operations.get_nowait()
            except queue.Empty:
                return group, False
            if operation is None:
                return group, True
            group.append(operation)
        return group, False


def _commit(connection: sqlite3.Connection, group: list[_Operation]) -> None:
    """Run a group in one transaction. An operation refuses before it writes, so one refusal leaves the others whole."""
    outcomes: list[tuple[_Operation, Any, BaseException | None]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for operation in group:
            try:
                outcomes.append((operation, operation.work(connection), None))
            except PotstillError as error:
                outcomes.append((operation, None, error))
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        failure = MachineError(f"the ledger cannot be written: {error}", hint="is the disk full?")
        outcomes = [(operation, None, failure) for operation in group]
    for operation, result, failed in outcomes:
        if failed is None:
            operation.future.set_result(result)
        else:
            operation.future.set_exception(failed)
