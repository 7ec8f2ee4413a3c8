"""Batch jobs in the ledger: what is in each, and what the teacher calls it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from potstill.errors import BudgetError
from potstill.ledger.entries import Intent, Job, JobStatus
from potstill.ledger.money import from_pico
from potstill.ledger.writer import Writer

Reserve = Callable[[sqlite3.Connection, Intent, int], int]


class Jobs:
    """The jobs of a ledger. Each change is on disk when it returns."""

    def __init__(self, reader: sqlite3.Connection, writer: Writer, reserve: Reserve) -> None:
        self._reader = reader
        self._writer = writer
        self._reserve = reserve

    async def plan(self, label: str, model: str, intents: Sequence[Intent]) -> tuple[Job, int]:
        """Reserve a job's requests, as many from the first as the budget allows; gives the job and their number.

        Raises BudgetError, with nothing written, where not even the first can be paid for.
        """
        return await self._writer.submit(lambda connection: self._plan(connection, label, model, intents))

    async def mark(self, job: int, status: JobStatus, *, file: str | None = None, name: str | None = None) -> None:
        """Write down how far a job is, with the teacher's name for its file or for itself."""
        await self._writer.submit(
            lambda connection: connection.execute(
                "UPDATE jobs SET status = ?, file = coalesce(?, file), name = coalesce(?, name) WHERE id = ?",
                (status, file, name, job),
            )
        )

    def unfinished(self, model: str) -> list[Job]:
        """The jobs of a model that have not ended, the oldest first."""
        rows = self._reader.execute(
            "SELECT id, label, model, status, file, name, created_at FROM jobs"
            " WHERE model = ? AND status <> 'ended' ORDER BY id",
            (model,),
        ).fetchall()
        return [_job(row) for row in rows]

    def open_attempts(self, job: int) -> dict[str, int]:
        """A job's attempts that have no answer yet: key -> attempt."""
        rows = self._reader.execute("SELECT key, id FROM attempts WHERE job = ? AND status = 'open'", (job,))
        return dict(rows.fetchall())

    def reserved(self, attempt: int) -> Decimal:
        """Dollars that are held for one attempt."""
        row = self._reader.execute("SELECT reserved FROM attempts WHERE id = ?", (attempt,)).fetchone()
        return from_pico(row[0])

    def requests(self, job: int) -> Iterator[tuple[str, str]]:
        """A job's requests in order: key and the request as JSON."""
        return iter(self._reader.execute("SELECT key, request FROM attempts WHERE job = ? ORDER BY id", (job,)))

    def waits(self, key: str) -> bool:
        """Whether a job that has not ended is to answer this key."""
        row = self._reader.execute(
            "SELECT 1 FROM attempts JOIN jobs ON jobs.id = attempts.job"
            " WHERE attempts.key = ? AND attempts.status = 'open' AND jobs.status <> 'ended' LIMIT 1",
            (key,),
        ).fetchone()
        return row is not None

    def _plan(
        self, connection: sqlite3.Connection, label: str, model: str, intents: Sequence[Intent]
    ) -> tuple[Job, int]:
        now = datetime.now(UTC)
        last = connection.execute("SELECT coalesce(max(id), 0) FROM jobs").fetchone()[0]
        job = Job(int(last) + 1, label, model, "planned", None, None, now)
        reserved = 0
        for intent in intents:
            try:
                self._reserve(connection, intent, job.id)
            except BudgetError:
                if not reserved:
                    raise
                break
            reserved += 1
        connection.execute(
            "INSERT INTO jobs VALUES (?, ?, ?, 'planned', NULL, NULL, ?)", (job.id, label, model, now.isoformat())
        )
        return job, reserved


def _job(row: tuple[Any, ...]) -> Job:
    identity, label, model, status, file, name, created_at = row
    return Job(identity, label, model, status, file, name, datetime.fromisoformat(created_at))
