"""The ledger of one workspace.

The budget check, the limits that processes share, and the reservation are one transaction, so that the sum of spent and
reserved never passes the budget, across restarts and across processes. A file that a kill or a full disk left torn is
SQLite's write-ahead log with an incomplete end, which the next opening cuts off.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Self

from potstill.errors import BudgetError, MachineError, UsageError
from potstill.ledger.entries import (
    Change,
    Elsewhere,
    Gate,
    Held,
    Intent,
    PlanProgress,
    Settled,
    Settlement,
    StoredReply,
    Ticket,
)
from potstill.ledger.jobs import Jobs
from potstill.ledger.money import from_pico, to_pico
from potstill.ledger.operations import (
    advance,
    check_cap,
    finish,
    insert,
    lose,
    put_state,
    settle_lost,
    share,
    shared_state,
)
from potstill.ledger.owners import Owners
from potstill.ledger.reading import ABANDONED, find_answer, select_attempts
from potstill.ledger.schema import connect, prepare, unreadable
from potstill.ledger.writer import Writer
from potstill.records import Attempt
from potstill.wording import counted

UNDER_WAY = (
    "SELECT owner FROM attempts WHERE key = ? AND status = 'open' AND finished_at IS NULL AND started_at > ?"
    " AND owner <> ?"
)


class Ledger:
    """The journal of one workspace. Open it with `Ledger.open`; use it as a context manager."""

    def __init__(self, path: Path, max_usd: Decimal | None) -> None:
        self._max = None if max_usd is None else to_pico(max_usd)
        self._owners = Owners(path)
        self._reader = connect(path)
        self._writer = Writer(path)
        self.jobs = Jobs(self._reader, self._writer, self._reserve)

    @classmethod
    def open(cls, path: Path, max_usd: Decimal | None = None) -> Ledger:
        """Open or create a ledger; raises InputError for a file that is none, MachineError where it cannot be made."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(connect(path)) as connection:
                prepare(connection, path)
        except sqlite3.DatabaseError as error:
            raise unreadable(path, error) from error
        except OSError as error:
            message = f"cannot create {path}: {error.strerror}"
            raise MachineError(message) from error
        Owners(path).sweep()
        return cls(path, max_usd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is waiting and close the file."""
        self._writer.close()
        self._reader.close()
        self._owners.close()

    async def reserve(self, intent: Intent, gate: Gate | None = None) -> Ticket | Held | Elsewhere:
        """Write the intent and hold its worst case, if the gate lets it pass; on disk when a ticket is returned.

        Raises BudgetError where spent + reserved + worst case would pass the budget, and what the gate raises; nothing
        is written then, nor where the answer is Held or Elsewhere.
        """
        return await self._writer.submit(lambda connection: self._enter(connection, intent, gate))

    async def settle(self, attempt: int, settlement: Settlement, change: Change | None = None) -> None:
        """Write the raw reply and replace the reservation by the cost."""
        await self._writer.submit(lambda connection: finish(connection, attempt, "done", None, settlement, change))

    async def fail(
        self, attempt: int, reason: str, settlement: Settlement | None = None, change: Change | None = None
    ) -> None:
        """Close an attempt that gave no answer; `settlement` where the teacher billed it all the same."""
        await self._writer.submit(lambda connection: finish(connection, attempt, "failed", reason, settlement, change))

    async def lose(self, attempt: int, reason: str) -> None:
        """Mark an attempt as sent without a reply: possibly paid, so its reservation stays counted."""
        await self._writer.submit(lambda connection: lose(connection, attempt, reason))

    async def settle_lost(self, billed_usd: Decimal, chosen: Callable[[Attempt], bool]) -> Settled:
        """Close those of `open_attempts` that are chosen, at what the teacher's bill says of them together.

        Raises UsageError, with nothing written, where that is more than is held for them.
        """
        return await self._writer.submit(lambda connection: self._settle_lost(connection, billed_usd, chosen))

    async def share(self, change: Change) -> None:
        """Change a state that processes share."""
        await self._writer.submit(lambda connection: share(connection, change))

    def shared(self, scope: str) -> str | None:
        """The state shared under a scope; None where there is none yet."""
        return shared_state(self._reader, scope)

    def answer(self, key: str) -> StoredReply | None:
        """The answer that was paid for earlier under this key, if there is one."""
        return find_answer(self._reader, key)

    def committed(self, key: str) -> Decimal:
        """Dollars that the attempts under one key cost, or hold while they have no answer."""
        query = "SELECT sum(CASE status WHEN 'open' THEN reserved ELSE cost END) FROM attempts WHERE key = ?"
        return from_pico(self._reader.execute(query, (key,)).fetchone()[0] or 0)

    def attempts(self) -> Iterator[Attempt]:
        """All attempts in the order in which they were made."""
        return select_attempts(self._reader)

    def open_attempts(self) -> Iterator[Attempt]:
        """Attempts that left and will have no answer any more: possibly paid.

        What a batch job is still to answer is not among them, nor what a process that is alive has in flight.
        """
        return self._open_attempts(self._reader)

    def spent(self) -> Decimal:
        """Dollars that were billed."""
        return from_pico(self._reader.execute("SELECT spent FROM totals").fetchone()[0])

    def reserved(self) -> Decimal:
        """Dollars held for attempts without an answer: in flight, or possibly paid."""
        return from_pico(self._reader.execute("SELECT reserved FROM totals").fetchone()[0])

    def progress(self, plan: str) -> PlanProgress | None:
        """How far a plan is; None for one that was never run."""
        row = self._reader.execute("SELECT cells, first_open FROM plans WHERE plan = ?", (plan,)).fetchone()
        if row is None:
            return None
        holes = self._reader.execute("SELECT position FROM holes WHERE plan = ? ORDER BY position", (plan,))
        return PlanProgress(row[0], row[1], tuple(position for (position,) in holes))

    async def advance(self, plan: str, progress: PlanProgress) -> None:
        """Write down how far a plan is."""
        await self._writer.submit(lambda connection: advance(connection, plan, progress))

    def under_way(self, key: str, patience_s: float) -> bool:
        """Whether another process that is alive has sent this key within `patience_s` seconds, and has no answer yet."""
        return self._under_way(self._reader, key, patience_s)

    def _enter(self, connection: sqlite3.Connection, intent: Intent, gate: Gate | None) -> Ticket | Held | Elsewhere:
        patience_s = intent.patience_s
        if patience_s is not None and (
            find_answer(connection, intent.key) is not None or self._under_way(connection, intent.key, patience_s)
        ):
            return Elsewhere()
        worst = self._within_budget(connection, intent)
        if gate is None:
            return Ticket(insert(connection, intent, worst, owner=self._owners.mine()), 0.0)
        decided = gate.decide(shared_state(connection, gate.scope))
        if isinstance(decided, Held):
            return decided
        put_state(connection, gate.scope, decided.state)
        return Ticket(insert(connection, intent, worst, owner=self._owners.mine()), decided.start_at)

    def _under_way(self, connection: sqlite3.Connection, key: str, patience_s: float) -> bool:
        since = (datetime.now(UTC) - timedelta(seconds=patience_s)).isoformat()
        rows = connection.execute(UNDER_WAY, (key, since, self._owners.name)).fetchall()
        return any(self._owners.is_alive(owner) for (owner,) in rows)

    def _open_attempts(self, connection: sqlite3.Connection) -> Iterator[Attempt]:
        in_flight = self._owners.in_flight(connection)
        return (attempt for attempt in select_attempts(connection, ABANDONED) if attempt.id not in in_flight)

    def _settle_lost(
        self, connection: sqlite3.Connection, billed_usd: Decimal, chosen: Callable[[Attempt], bool]
    ) -> Settled:
        lost = [attempt for attempt in self._open_attempts(connection) if chosen(attempt)]
        held_usd = sum((attempt.reserved_usd for attempt in lost), Decimal(0))
        if billed_usd > held_usd:
            message = f"${billed_usd:f} is more than the ${held_usd:f} held for {counted(len(lost), 'attempt')}"
            raise UsageError(message, hint="other work is on that bill too; name its days with --since and --until")
        settle_lost(connection, lost, to_pico(billed_usd))
        return Settled(len(lost), held_usd, billed_usd)

    def _reserve(self, connection: sqlite3.Connection, intent: Intent, job: int) -> int:
        return insert(connection, intent, self._within_budget(connection, intent), job)

    def _within_budget(self, connection: sqlite3.Connection, intent: Intent) -> int:
        """The worst case in picodollars; raises BudgetError where it would pass the budget."""
        worst = to_pico(intent.worst_usd)
        spent, reserved = connection.execute("SELECT spent, reserved FROM totals").fetchone()
        if self._max is not None and spent + reserved + worst > self._max:
            message = (
                f"budget of ${from_pico(self._max):f} would be passed: spent ${from_pico(spent):f}, "
                f"reserved ${from_pico(reserved):f}, next request up to ${intent.worst_usd:f}"
            )
            raise BudgetError(message, hint="raise budget.max_usd / --max-cost, or lower generate.max_output_tokens")
        if intent.cap is not None:
            check_cap(connection, intent.command, intent.cap, worst)
        return worst
