"""Every attempt at a paid call, in SQLite: the intent before it leaves, the raw answer before anything parses it.

Money is kept in integer picodollars: a price per million tokens with up to six decimals is then exact for every token,
and 64 bits hold nine million dollars. The budget check and the reservation are one transaction, so that the sum of
spent and reserved never passes the budget, across restarts and across processes. Writes are committed in groups by one
thread, so that an attempt costs microseconds where a commit of its own would cost milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from potstill.errors import BudgetError, InputError, MachineError
from potstill.records import Attempt, Usage

APPLICATION_ID = 0x506F7473  # "Pots"
SCHEMA_VERSION = 1
PICO = Decimal(10) ** 12
BUSY_S = 30.0
GROUP = 256
"""Operations committed together at most."""

SCHEMA = """
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
COLUMNS = (
    "id, key, command, role, model, service, status, reason, reserved, cost, price_id,"
    " input_tokens, output_tokens, thinking_tokens, cached_tokens, started_at, finished_at"
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Intent:
    """What is about to be sent, and the most that it can cost."""

    key: str
    command: str
    role: str | None
    model: str
    service: str
    request: dict[str, Any]
    worst_usd: Decimal


@dataclass(frozen=True)
class Settlement:
    """What came back: the raw reply, what it was billed, and how long it took."""

    reply: str
    usage: Usage
    cost_usd: Decimal
    price_id: str | None
    latency_s: float


@dataclass(frozen=True)
class StoredReply:
    """An answer that was paid for earlier."""

    reply: str
    cost_usd: Decimal
    price_id: str
    latency_s: float
    finished_at: datetime


class Ledger:
    """The journal of one workspace. Open it with `Ledger.open`; use it as a context manager."""

    def __init__(self, path: Path, max_usd: Decimal | None) -> None:
        self._path = path
        self._max = None if max_usd is None else to_pico(max_usd)
        self._reader = _connect(path)
        self._operations: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, path: Path, max_usd: Decimal | None = None) -> Ledger:
        """Open or create a ledger; raises InputError for a file that is none, MachineError where it cannot be made."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(_connect(path)) as connection:
                _prepare(connection, path)
        except sqlite3.DatabaseError as error:
            raise _unreadable(path, error) from error
        except OSError as error:
            message = f"cannot create {path}: {error.strerror}"
            raise MachineError(message) from error
        return cls(path, max_usd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is waiting and close the file."""
        self._operations.put(None)
        self._writer.join()
        self._reader.close()

    async def reserve(self, intent: Intent) -> int:
        """Write the intent and hold its worst case; on disk when this returns the attempt's id.

        Raises BudgetError, with nothing written, where spent + reserved + worst case would pass the budget.
        """
        return await self._submit(lambda connection: self._reserve(connection, intent))

    async def settle(self, attempt: int, settlement: Settlement) -> None:
        """Write the raw reply and replace the reservation by the cost."""
        await self._submit(lambda connection: _finish(connection, attempt, "done", None, settlement))

    async def fail(self, attempt: int, reason: str, settlement: Settlement | None = None) -> None:
        """Close an attempt that gave no answer; `settlement` where the teacher billed it all the same."""
        await self._submit(lambda connection: _finish(connection, attempt, "failed", reason, settlement))

    async def lose(self, attempt: int, reason: str) -> None:
        """Mark an attempt as sent without a reply: possibly paid, so its reservation stays counted."""
        await self._submit(lambda connection: _lose(connection, attempt, reason))

    def answer(self, key: str) -> StoredReply | None:
        """The answer that was paid for earlier under this key, if there is one."""
        row = self._reader.execute(
            "SELECT reply, cost, price_id, latency_s, finished_at FROM attempts"
            " WHERE key = ? AND status = 'done' ORDER BY id DESC LIMIT 1",
            (key,),
        ).fetchone()
        if row is None:
            return None
        reply, cost, price_id, latency_s, finished_at = row
        return StoredReply(reply, from_pico(cost), price_id or "", latency_s, datetime.fromisoformat(finished_at))

    def attempts(self) -> Iterator[Attempt]:
        """All attempts in the order in which they were made."""
        return _attempts(self._reader)

    def sent_since(self, model: str, moment: datetime) -> int:
        """How many requests left for a model since a moment: what a daily quota counts."""
        query = "SELECT count(*) FROM attempts WHERE model = ? AND started_at >= ?"
        return int(self._reader.execute(query, (model, moment.astimezone(UTC).isoformat())).fetchone()[0])

    def spent(self) -> Decimal:
        """Dollars that were billed."""
        return from_pico(self._reader.execute("SELECT spent FROM totals").fetchone()[0])

    def reserved(self) -> Decimal:
        """Dollars held for attempts without an answer: in flight, or possibly paid."""
        return from_pico(self._reader.execute("SELECT reserved FROM totals").fetchone()[0])

    def _reserve(self, connection: sqlite3.Connection, intent: Intent) -> int:
        worst = to_pico(intent.worst_usd)
        spent, reserved = connection.execute("SELECT spent, reserved FROM totals").fetchone()
        if self._max is not None and spent + reserved + worst > self._max:
            message = (
                f"budget of ${from_pico(self._max):f} would be passed: spent ${from_pico(spent):f}, "
                f"reserved ${from_pico(reserved):f}, next request up to ${intent.worst_usd:f}"
            )
            raise BudgetError(message, hint="raise budget.max_usd / --max-cost, or lower generate.max_output_tokens")
        connection.execute("UPDATE totals SET reserved = reserved + ?", (worst,))
        cursor = connection.execute(
            "INSERT INTO attempts (key, command, role, model, service, request, status, reserved, started_at)"
            " VALUES (?, ?, ?, ?, ?, ?, 'open', ?, ?)",
            (
                intent.key,
                intent.command,
                intent.role,
                intent.model,
                intent.service,
                json.dumps(intent.request, ensure_ascii=False, sort_keys=True),
                worst,
                _now(),
            ),
        )
        return int(cursor.lastrowid or 0)

    async def _submit(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        future: Future[Any] = Future()
        self._operations.put(_Operation(work, future))
        # Shielded: a cancelled caller must not leave the writer with a future that it cannot resolve.
        result: Result = await asyncio.shield(asyncio.wrap_future(future))
        return result

    def _write(self) -> None:
        """The writer thread: take what waits, commit it at once, then tell everyone."""
        with closing(_connect(self._path)) as connection:
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


@dataclass(frozen=True)
class _Operation:
    work: Callable[[sqlite3.Connection], Any]
    future: Future[Any]


def read_attempts(path: Path) -> list[Attempt]:
    """All attempts of a ledger that is only read; a missing file has none. Raises InputError for a file that is none."""
    if not path.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)) as connection:
            return list(_attempts(connection))
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error


def to_pico(usd: Decimal) -> int:
    """Dollars in picodollars, rounded up: a reservation may be a trillionth too high, never too low."""
    return int((usd * PICO).to_integral_value(rounding="ROUND_CEILING"))


def from_pico(pico: int) -> Decimal:
    """Picodollars in dollars, exactly."""
    return (Decimal(pico) / PICO).normalize() + 0


def _commit(connection: sqlite3.Connection, group: list[_Operation]) -> None:
    """Run a group in one transaction. An operation refuses before it writes, so one refusal leaves the others whole."""
    outcomes: list[tuple[_Operation, Any, BaseException | None]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for operation in group:
            try:
                outcomes.append((operation, operation.work(connection), None))
            except BudgetError as error:
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


def _finish(
    connection: sqlite3.Connection, attempt: int, status: str, reason: str | None, settlement: Settlement | None
) -> None:
    usage = settlement.usage if settlement else Usage()
    cost = to_pico(settlement.cost_usd) if settlement else 0
    reserved = connection.execute("SELECT reserved FROM attempts WHERE id = ?", (attempt,)).fetchone()[0]
    connection.execute("UPDATE totals SET reserved = reserved - ?, spent = spent + ?", (reserved, cost))
    connection.execute(
        "UPDATE attempts SET status = ?, reason = ?, cost = ?, price_id = ?, input_tokens = ?, output_tokens = ?,"
        " thinking_tokens = ?, cached_tokens = ?, reply = ?, latency_s = ?, finished_at = ? WHERE id = ?",
        (
            status,
            reason,
            cost,
            settlement.price_id if settlement else None,
            usage.input_tokens,
            usage.output_tokens,
            usage.thinking_tokens,
            usage.cached_tokens,
            settlement.reply if settlement else None,
            settlement.latency_s if settlement else None,
            _now(),
            attempt,
        ),
    )


def _lose(connection: sqlite3.Connection, attempt: int, reason: str) -> None:
    connection.execute("UPDATE attempts SET reason = ?, finished_at = ? WHERE id = ?", (reason, _now(), attempt))


def _attempts(connection: sqlite3.Connection) -> Iterator[Attempt]:
    for row in connection.execute(f"SELECT {COLUMNS} FROM attempts ORDER BY id"):  # noqa: S608  (a constant)
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


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    _use_wal(connection)
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if version == 0 and tables == 0:
        for statement in SCHEMA.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    connection.execute("COMMIT")
    if owner != APPLICATION_ID or version not in (0, SCHEMA_VERSION):
        message = f"{path} is not a ledger of this version of potstill"
        raise InputError(message, hint="choose another workspace with -w/--workspace")


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


def _unreadable(path: Path, error: sqlite3.Error) -> InputError:
    return InputError(f"{path} is not a readable ledger: {error}", hint="restore it, or choose another -w/--workspace")


def _now() -> str:
    return datetime.now(UTC).isoformat()
