"""What the writer does to the ledger's rows, each within the transaction of its caller."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime

from potstill.errors import BudgetError
from potstill.ledger.entries import BY_BILL, Cap, Change, Intent, PlanProgress, Settlement
from potstill.ledger.money import from_pico, to_pico
from potstill.records import Attempt, Usage


def check_cap(connection: sqlite3.Connection, command: str, cap: Cap, worst: int) -> None:
    """Raise BudgetError where a command's attempts, this one included, could cost more than its cap."""
    row = connection.execute("SELECT committed FROM by_command WHERE command = ?", (command,)).fetchone()
    committed = row[0] if row else 0
    if committed + worst > to_pico(cap.max_usd):
        message = (
            f"{cap.name} of ${cap.max_usd:f} would be passed: ${from_pico(committed):f} are spent or reserved,"
            f" the next request costs up to ${from_pico(worst):f}"
        )
        raise BudgetError(message, hint=f"raise {cap.name}; what is paid for is never paid for again")


def insert(
    connection: sqlite3.Connection, intent: Intent, worst: int, job: int | None = None, owner: str | None = None
) -> int:
    """Write an intent and hold its worst case, in picodollars; gives the number of the attempt."""
    connection.execute("UPDATE totals SET reserved = reserved + ?", (worst,))
    cursor = connection.execute(
        "INSERT INTO attempts (key, command, role, model, service, request, status, reserved, started_at, job,"
        " owner) VALUES (?, ?, ?, ?, ?, ?, 'open', ?, ?, ?, ?)",
        (
            intent.key,
            intent.command,
            intent.role,
            intent.model,
            intent.service,
            intent.request,
            worst,
            _now(),
            job,
            owner,
        ),
    )
    return int(cursor.lastrowid or 0)


def finish(
    connection: sqlite3.Connection,
    attempt: int,
    status: str,
    reason: str | None,
    settlement: Settlement | None,
    change: Change | None = None,
) -> None:
    """Close an open attempt; one that is closed already stays as it is, so that a result read twice counts once."""
    found = connection.execute("SELECT reserved FROM attempts WHERE id = ? AND status = 'open'", (attempt,)).fetchone()
    if found is None:
        return
    usage = settlement.usage if settlement else Usage()
    cost = to_pico(settlement.cost_usd) if settlement else 0
    connection.execute("UPDATE totals SET reserved = reserved - ?, spent = spent + ?", (found[0], cost))
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
    if change is not None:
        share(connection, change)


def settle_lost(connection: sqlite3.Connection, attempts: Sequence[Attempt], billed: int) -> None:
    """Close attempts without a reply at what was billed for them together, in picodollars: each at its share of what is held."""
    held = sum(to_pico(attempt.reserved_usd) for attempt in attempts)
    gone = before = 0
    for attempt in attempts:
        gone += to_pico(attempt.reserved_usd)
        until = billed * gone // held if held else 0
        settlement = Settlement("", Usage(), from_pico(until - before), None, 0.0)
        finish(connection, attempt.id, "failed", BY_BILL, settlement)
        before = until


def lose(connection: sqlite3.Connection, attempt: int, reason: str) -> None:
    """Note why an attempt will have no reply; it stays open."""
    connection.execute("UPDATE attempts SET reason = ?, finished_at = ? WHERE id = ?", (reason, _now(), attempt))


def shared_state(connection: sqlite3.Connection, scope: str) -> str | None:
    """The state shared under a scope."""
    row = connection.execute("SELECT state FROM shared WHERE scope = ?", (scope,)).fetchone()
    return None if row is None else str(row[0])


def put_state(connection: sqlite3.Connection, scope: str, state: str) -> None:
    """Write the state shared under a scope."""
    connection.execute(
        "INSERT INTO shared VALUES (?, ?) ON CONFLICT (scope) DO UPDATE SET state = excluded.state", (scope, state)
    )


def share(connection: sqlite3.Connection, change: Change) -> None:
    """Apply a change of a state that processes share."""
    state = change.apply(shared_state(connection, change.scope))
    if state is not None:
        put_state(connection, change.scope, state)


def advance(connection: sqlite3.Connection, plan: str, progress: PlanProgress) -> None:
    """Write down how far a plan is."""
    connection.execute(
        "INSERT INTO plans VALUES (?, ?, ?) ON CONFLICT (plan) DO UPDATE SET"
        " cells = excluded.cells, first_open = excluded.first_open",
        (plan, progress.cells, progress.first_open),
    )
    connection.execute("DELETE FROM holes WHERE plan = ?", (plan,))
    connection.executemany("INSERT INTO holes VALUES (?, ?)", ((plan, position) for position in progress.holes))


def _now() -> str:
    return datetime.now(UTC).isoformat()
