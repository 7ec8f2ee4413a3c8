"""The thread that writes: operations that wait together are committed together.

A commit that is on disk costs milliseconds, an operation microseconds; committing in groups makes the difference. What
the event loop submits in one turn is handed over at once, and a whole group's outcomes come back at once: a wake-up of
either side costs more than an operation does.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
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
    future: asyncio.Future[Any]


@dataclass(frozen=True)
class _Outcome:
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class Writer:
    """Runs operations on a connection of its own, in order, each on disk before its caller hears of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handed: queue.SimpleQueue[list[_Operation] | None] = queue.SimpleQueue()
        self._gathered: list[_Operation] = []
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    async def submit(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run one operation, also where its caller is cancelled meanwhile.

        A PotstillError that it raises, before it has written anything, comes back alone.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if not self._gathered:
            loop.call_soon(self._hand_over)
        self._gathered.append(_Operation(work, future))
        return await future

    def close(self) -> None:
        """Commit what is waiting and end the thread."""
        self._hand_over()
        self._handed.put(None)
        self._thread.join()

    def _hand_over(self) -> None:
        if self._gathered:
            self._handed.put(self._gathered)
            self._gathered = []

    def _write(self) -> None:
        with closing(connect(self._path)) as connection:
            while (group := self._handed.get()) is not None:
                ended = self._add_waiting(group)
                for start in range(0, len(group), GROUP):
                    _tell(_commit(connection, group[start : start + GROUP]))
                if ended:
                    return

    def _add_waiting(self, group: list[_Operation]) -> bool:
        """Add what came meanwhile; whether the end did."""
        while len(group) < GROUP:
            try:
                more = self._handed.get_nowait()
            except queue.Empty:
                return False
            if more is None:
                return True
            group += more
        return False


def _commit(connection: sqlite3.Connection, group: list[_Operation]) -> list[_Outcome]:
    """Run a group in one transaction. An operation refuses before it writes, so one refusal leaves the others whole.

    What SQLite cannot hold (more than 64 bits, half a surrogate pair) is found out in the middle of an operation: then
    each goes by itself.
    """
    outcomes: list[_Outcome] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for operation in group:
            try:
                outcomes.append(_Outcome(operation.future, operation.work(connection)))
            except PotstillError as error:
                outcomes.append(_Outcome(operation.future, error=error))
        connection.execute("COMMIT")
    except (ValueError, OverflowError) as error:
        connection.execute("ROLLBACK")
        if len(group) == 1:
            return [_Outcome(group[0].future, error=error)]
        return [outcome for operation in group for outcome in _commit(connection, [operation])]
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        failure = MachineError(f"the ledger cannot be written: {error}", hint="is the disk full?")
        return [_Outcome(operation.future, error=failure) for operation in group]
    return outcomes


def _tell(outcomes: list[_Outcome]) -> None:
    """Hand the outcomes of a group to the event loop that waits for them; one that is gone no longer asks."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome.future.get_loop(), []).append(outcome)
    for loop, told in by_loop.items():
        with suppress(RuntimeError):  # closed
            loop.call_soon_threadsafe(_resolve, told)


def _resolve(outcomes: list[_Outcome]) -> None:
    for outcome in outcomes:
        if outcome.future.done():  # its caller was cancelled
            continue
        if outcome.error is None:
            outcome.future.set_result(outcome.result)
        else:
            outcome.future.set_exception(outcome.error)
