"""What is possibly paid is closed by hand, at what the teacher's bill says: once, exactly, and never more than was held."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Run

from potstill.config import PricesConfig
from potstill.cost.reconcile import Billed, reconcile
from potstill.cost.report import report, settle
from potstill.errors import BudgetError, InputError, UsageError
from potstill.ledger import BY_BILL, Intent, Ledger, Settlement, Ticket, read_attempts
from potstill.ledger.operations import insert, settle_lost
from potstill.ledger.reading import select_attempts
from potstill.ledger.schema import connect, prepare
from potstill.pricing.book import load_prices
from potstill.records import Usage
from potstill.workspace import Workspace

MODEL = "gemini-3.5-flash-lite"
HELD = Decimal("0.1")


def intent(key: str, command: str = "generate") -> Intent:
    """A request that costs ten cents at most."""
    return Intent(key, command, None, MODEL, "standard", "{}", HELD)


async def reserved(ledger: Ledger, key: str, command: str = "generate") -> int:
    """Write an attempt; gives its number."""
    ticket = await ledger.reserve(intent(key, command))
    assert isinstance(ticket, Ticket)
    return ticket.attempt


async def lose_three(workspace: Workspace) -> None:
    """Three replies that were lost, one of another command, and one answer."""
    with Ledger.open(workspace.ledger) as ledger:
        for key, command in (("a", "generate"), ("b", "generate"), ("c", "judge")):
            await ledger.lose(await reserved(ledger, key, command), "timeout")
        paid = Settlement("{}", Usage(input_tokens=1), Decimal("0.01"), "p", 0.1)
        await ledger.settle(await reserved(ledger, "d"), paid)


async def test_what_the_bill_does_not_show_is_free_again(tmp_path: Path) -> None:
    """A budget that lost replies had used up lets a request pass again; the attempts stand in the ledger with the reason."""
    workspace = Workspace(tmp_path)
    await lose_three(workspace)
    with Ledger.open(workspace.ledger, Decimal("0.35")) as ledger:
        with pytest.raises(BudgetError):
            await ledger.reserve(intent("e"))
        settled = await settle(workspace, Decimal("0.05"), command="generate")
        assert (settled.attempts, settled.held_usd, settled.billed_usd) == (2, 2 * HELD, Decimal("0.05"))
        assert (ledger.spent(), ledger.reserved()) == (Decimal("0.06"), HELD)
        assert isinstance(await ledger.reserve(intent("e")), Ticket)
    closed = [attempt for attempt in read_attempts(workspace.ledger) if attempt.reason == BY_BILL]
    assert [(attempt.key, attempt.status, attempt.cost_usd) for attempt in closed] == [
        ("a", "failed", Decimal("0.025")),
        ("b", "failed", Decimal("0.025")),
    ]
    total = report(workspace).total
    assert (total.by_bill, total.by_bill_usd, total.usd) == (2, Decimal("0.05"), Decimal("0.06"))
    assert total.possibly_usd == 2 * HELD


async def test_more_than_was_held_or_a_day_too_many_is_refused(tmp_path: Path) -> None:
    """A sum that cannot be these attempts' writes nothing, nor does a day on which none left; no ledger is said."""
    workspace = Workspace(tmp_path)
    with pytest.raises(InputError, match="no ledger"):
        await settle(workspace, Decimal(0))
    await lose_three(workspace)
    with pytest.raises(UsageError, match="more than the"):
        await settle(workspace, Decimal("0.31"))
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    assert (await settle(workspace, Decimal(0), until=yesterday)).attempts == 0
    assert report(workspace).total.possibly_usd == 3 * HELD
    assert (await settle(workspace, Decimal("0.3"))).attempts == 3
    assert (await settle(workspace, Decimal(0))).attempts == 0


async def test_what_is_in_flight_is_not_settled(tmp_path: Path) -> None:
    """An attempt of somebody at work stays as it is, and its answer counts when it comes."""
    workspace = Workspace(tmp_path)
    with Ledger.open(workspace.ledger) as ledger:
        flying = await reserved(ledger, "a")
        assert (await settle(workspace, Decimal(0))).attempts == 0
        await ledger.settle(flying, Settlement("{}", Usage(input_tokens=1), Decimal("0.02"), "p", 0.1))
        assert (ledger.spent(), ledger.reserved()) == (Decimal("0.02"), Decimal(0))


async def test_a_bill_agrees_after_it_was_settled(tmp_path: Path) -> None:
    """Settled at what the bill shows, both sides agree as before; settled at less, they differ."""
    usage, book = Usage(input_tokens=500, output_tokens=2000), load_prices(PricesConfig())
    log = [Billed(at=datetime.now(UTC), model=MODEL, billed=usage)]
    for folder, billed, agrees in (("all", "0.00515", True), ("less", "0", False)):
        workspace = Workspace(tmp_path / folder)
        with Ledger.open(workspace.ledger) as ledger:
            await ledger.lose(await reserved(ledger, "a"), "timeout")
        before = reconcile(read_attempts(workspace.ledger), log, book)
        assert before.agrees
        assert before.lost_usd == Decimal("0.00515")
        await settle(workspace, Decimal(billed))
        assert reconcile(read_attempts(workspace.ledger), log, book).agrees == agrees


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=20), st.data())
def test_the_shares_are_the_bill_to_the_last_digit(held: list[int], data: st.DataObject) -> None:
    """Whatever was held for each, the costs add up to what was billed, and none is above what was held for it."""
    billed = data.draw(st.integers(0, sum(held)))
    with connect(Path(":memory:")) as connection:
        prepare(connection, Path(":memory:"))
        for number, worst in enumerate(held):
            insert(connection, intent(str(number)), worst)
        settle_lost(connection, list(select_attempts(connection)), billed)
        rows = connection.execute("SELECT cost, reserved, status FROM attempts").fetchall()
        assert connection.execute("SELECT spent, reserved FROM totals").fetchone() == (billed, 0)
        assert connection.execute("SELECT committed FROM by_command").fetchone() == (billed,)
    assert sum(cost for cost, _, _ in rows) == billed
    assert all(cost <= worst and status == "failed" for cost, worst, status in rows)


async def test_the_report_settles_and_still_tells(potstill: Run, tmp_path: Path) -> None:
    """`--settle` says what it closed; every later report says how much was settled so, also as JSON."""
    await lose_three(Workspace(tmp_path / "workspace"))
    now = potstill("cost", "report", "--settle", "0.05")
    assert now.returncode == 0, now.stderr
    assert "settled now: $0.3 held for 3 attempts, $0.05 of it spent by the bill" in now.stdout
    later = potstill("cost", "report")
    assert "settled now" not in later.stdout
    assert "settled by the bill, all told: 3 attempts without a reply, $0.05" in later.stdout
    document = json.loads(potstill("cost", "report", "--json", "--settle", "0").stdout)
    assert document["settled"] == {"attempts": 0, "held_usd": "0", "billed_usd": "0"}
    assert (document["total"]["by_bill"], document["total"]["by_bill_usd"]) == (3, "0.05")
    assert potstill("cost", "report", "--settle", "-1").returncode == 2
