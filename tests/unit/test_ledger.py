"""The ledger: what it holds after refusals, restarts, kills and torn files."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import BudgetError, InputError, MachineError, QuotaError
from potstill.ledger import (
    Admitted,
    Cap,
    Change,
    Gate,
    Held,
    Intent,
    Ledger,
    LedgerView,
    PlanProgress,
    Settlement,
    Ticket,
    from_pico,
    read_attempts,
    to_pico,
)
from potstill.ledger.schema import ATTEMPTS, connect, prepare
from potstill.records import Usage


def intent(key: str, worst: str = "0.01") -> Intent:
    """Something to send that costs a cent at most."""
    return Intent(key, "generate", "a-role", "m", "standard", "{}", Decimal(worst))


def paid(cost: str = "0.001", reply: str = "{}") -> Settlement:
    """An answer that cost a tenth of a cent."""
    return Settlement(reply, Usage(input_tokens=3, output_tokens=4), Decimal(cost), "price", 0.5)


async def reserve(ledger: Ledger, key: str, worst: str = "0.01") -> int:
    """Reserve and give the attempt's number."""
    ticket = await ledger.reserve(intent(key, worst))
    assert isinstance(ticket, Ticket)
    return ticket.attempt


async def test_an_answer_is_found_by_its_key(tmp_path: Path) -> None:
    """Reserved money becomes spent money; the raw reply comes back by key, also after a restart."""
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        attempt = await reserve(ledger, "k")
        assert (ledger.spent(), ledger.reserved()) == (0, Decimal("0.01"))
        assert ledger.answer("k") is None
        await ledger.settle(attempt, paid(reply='{"raw": "text"}'))
        assert (ledger.spent(), ledger.reserved()) == (Decimal("0.001"), 0)
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        stored = ledger.answer("k")
        assert stored is not None
        assert (stored.reply, stored.cost_usd, stored.price_id) == ('{"raw": "text"}', Decimal("0.001"), "price")


async def test_failures_count_what_was_billed_and_losses_what_was_reserved(tmp_path: Path) -> None:
    """A refusal frees its reservation, a billed failure costs, a lost reply stays held as possibly paid."""
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        refused, billed, lost = [await reserve(ledger, name) for name in ("refused", "billed", "lost")]
        await ledger.fail(refused, "http 503")
        await ledger.fail(billed, "empty", paid())
        await ledger.lose(lost, "timeout")
        assert (ledger.spent(), ledger.reserved()) == (Decimal("0.001"), Decimal("0.01"))
        assert [(row.key, row.status, row.reason) for row in ledger.open_attempts()] == [("lost", "open", "timeout")]
        assert [row.status for row in ledger.attempts()] == ["failed", "failed", "open"]


async def test_an_attempt_is_settled_once(tmp_path: Path) -> None:
    """A result that is read a second time, as after a kill in the middle of a batch, changes nothing."""
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        attempt = await reserve(ledger, "k")
        await ledger.settle(attempt, paid())
        await ledger.settle(attempt, paid("0.5"))
        await ledger.fail(attempt, "late")
        assert (ledger.spent(), ledger.reserved()) == (Decimal("0.001"), 0)


async def test_a_refusal_writes_nothing_and_spoils_nothing_beside_it(tmp_path: Path) -> None:
    """Of a group that is committed at once, only what would pass the budget is refused."""
    with Ledger.open(tmp_path / "ledger.sqlite3", Decimal("0.035")) as ledger:
        outcomes = await asyncio.gather(*(reserve(ledger, str(n)) for n in range(5)), return_exceptions=True)
        assert [isinstance(outcome, BudgetError) for outcome in outcomes] == [False, False, False, True, True]
        assert ledger.reserved() == Decimal("0.03")
        assert len(list(ledger.attempts())) == 3


async def test_what_sqlite_cannot_hold_is_refused_by_itself(tmp_path: Path) -> None:
    """A value that no column takes raises where it was given, and what was to be written beside it is written."""
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        torn, whole = await reserve(ledger, "torn"), await reserve(ledger, "whole")
        outcomes = await asyncio.wait_for(
            asyncio.gather(
                ledger.settle(torn, paid(reply="\ud83d")),
                ledger.settle(whole, paid()),
                ledger.reserve(intent("dear", "10000000")),
                return_exceptions=True,
            ),
            10,
        )
        assert [type(outcome) for outcome in outcomes] == [UnicodeEncodeError, type(None), OverflowError]
        assert (ledger.spent(), ledger.reserved()) == (Decimal("0.001"), Decimal("0.01"))


async def test_a_gate_holds_back_without_a_trace(tmp_path: Path) -> None:
    """Held and refused requests leave neither money nor state; an admitted one changes both at once."""

    def decide(state: str | None) -> Admitted | Held:
        if state == "full":
            message = "day over"
            raise QuotaError(message)
        return Held(3, "wait") if state == "busy" else Admitted("busy", 17.5)

    gate = Gate("scope", decide)
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        assert await ledger.reserve(intent("a"), gate) == Ticket(1, 17.5)
        assert await ledger.reserve(intent("b"), gate) == Held(3, "wait")
        await ledger.share(Change("scope", lambda _: "full"))
        with pytest.raises(QuotaError):
            await ledger.reserve(intent("c"), gate)
        assert ledger.shared("scope") == "full"
        assert ledger.shared("other") is None
        assert ledger.reserved() == Decimal("0.01")


async def test_a_plan_remembers_how_far_it_is(tmp_path: Path) -> None:
    """Progress and holes are replaced as a whole, and each plan has its own."""
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        assert ledger.progress("p") is None
        await ledger.advance("p", PlanProgress(100, 50, (3, 9)))
        await ledger.advance("p", PlanProgress(100, 60, (9,)))
        await ledger.advance("q", PlanProgress(5, 0, ()))
        assert ledger.progress("p") == PlanProgress(100, 60, (9,))
        assert ledger.progress("q") == PlanProgress(5, 0, ())


async def test_a_job_takes_what_the_budget_allows(tmp_path: Path) -> None:
    """A batch job reserves from the first request on until the budget is reached, in one transaction."""
    with Ledger.open(tmp_path / "ledger.sqlite3", Decimal("0.025")) as ledger:
        job, reserved = await ledger.jobs.plan("label", "m", [intent(str(n)) for n in range(5)])
        assert reserved == 2
        assert ledger.jobs.open_attempts(job.id) == {"0": 1, "1": 2}
        assert ledger.jobs.waits("1")
        assert not ledger.jobs.waits("3")
        with pytest.raises(BudgetError):
            await ledger.jobs.plan("another", "m", [intent("9")])
        await ledger.jobs.mark(job.id, "submitted", file="files/f", name="batches/b")
        (found,) = ledger.jobs.unfinished("m")
        assert (found.label, found.status, found.file, found.name) == ("label", "submitted", "files/f", "batches/b")
        await ledger.jobs.mark(job.id, "ended")
        assert ledger.jobs.unfinished("m") == []


@given(st.decimals(min_value=0, max_value=1000, places=12))
def test_money_is_exact(usd: Decimal) -> None:
    """A trillionth of a dollar survives the way to disk and back."""
    assert from_pico(to_pico(usd)) == usd


def test_a_reservation_is_rounded_up() -> None:
    """Less than a trillionth counts as one: never too low."""
    assert to_pico(Decimal("1e-13")) == 1


PROCESS = """
import asyncio, sys
from decimal import Decimal
from pathlib import Path
from potstill.errors import BudgetError
from potstill.ledger import Intent, Ledger, Settlement
from potstill.records import Usage

async def main():
    with Ledger.open(Path(sys.argv[1]), Decimal("0.5")) as ledger:
        for number in range(int(sys.argv[3])):
            try:
                intent = Intent(f"{sys.argv[2]}-{number}", "generate", None, "m", "standard", "{}", Decimal("0.01"))
                ticket = await ledger.reserve(intent)
            except BudgetError:
                print("refused")
                return
            print(ticket.attempt, flush=True)
            if number % 2:
                await ledger.settle(ticket.attempt, Settlement("{}", Usage(), Decimal("0.005"), "p", 0.1))

asyncio.run(main())
"""


def start(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    """Another process that reserves from the same ledger, a cent at a time, and settles every second attempt."""
    command = [sys.executable, "-c", PROCESS, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    """Both open a new ledger at the same moment; together they never pass its budget, and both are refused at it."""
    path = tmp_path / "ledger.sqlite3"
    processes = [start(path, name, 200) for name in ("a", "b")]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [error for _, error in outputs] == ["", ""]
    assert [output.splitlines()[-1] for output, _ in outputs] == ["refused", "refused"]
    attempts = read_attempts(path)
    held = sum(row.reserved_usd for row in attempts if row.status == "open")
    spent = sum(row.cost_usd for row in attempts)
    assert Decimal("0.48") < held + spent <= Decimal("0.5")
    with Ledger.open(path) as ledger:
        assert (ledger.spent(), ledger.reserved()) == (spent, held)


def test_a_kill_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    """After kill -9 every attempt whose number was given out stands in the ledger, and the sums agree with the rows."""
    path = tmp_path / "ledger.sqlite3"
    process = start(path, "a", 10_000)
    assert process.stdout is not None
    seen = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    with Ledger.open(path) as ledger:
        rows = list(ledger.attempts())
        assert set(seen) <= {row.id for row in rows}
        assert ledger.reserved() == sum(row.reserved_usd for row in rows if row.status == "open")
        assert ledger.spent() == sum(row.cost_usd for row in rows)


async def pay_six(ledger: Ledger) -> None:
    """Twelve commits."""
    for number in range(6):
        attempt = await reserve(ledger, str(number))
        await ledger.settle(attempt, paid())


def test_a_torn_journal_repairs_itself(tmp_path: Path) -> None:
    """A write-ahead log that was cut anywhere opens to a whole number of commits, with sums that agree."""
    path, log = tmp_path / "ledger.sqlite3", tmp_path / "ledger.sqlite3-wal"
    with Ledger.open(path) as ledger:
        asyncio.run(pay_six(ledger))
        whole, size = log.read_bytes(), log.stat().st_size
        shutil.copy(path, tmp_path / "main")
    counts = set()
    for cut in range(0, size, 2777):
        torn = tmp_path / f"torn-{cut}.sqlite3"
        shutil.copy(tmp_path / "main", torn)
        Path(f"{torn}-wal").write_bytes(whole[:cut] + b"\x00garbage")
        with Ledger.open(torn) as ledger:
            rows = list(ledger.attempts())
            counts.add(len(rows))
            assert [row.id for row in rows] == list(range(1, len(rows) + 1))
            assert ledger.spent() == sum(row.cost_usd for row in rows)
            assert ledger.reserved() == sum(row.reserved_usd for row in rows if row.status == "open")
    assert len(counts) > 3


def test_a_place_where_no_file_can_be_made_is_the_machines_fault() -> None:
    """A folder that takes no file, as a read-only one, ends in 7, and is not said to be a broken ledger."""
    with pytest.raises(MachineError, match="cannot be opened"):
        Ledger.open(Path("/proc/self/ledger.sqlite3"))


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    """Garbage, another program's database and a newer ledger are errors that name the file, and stay untouched."""
    (tmp_path / "garbage").write_bytes(b"SQLite format 3\x00" + b"x" * 4000)
    for name, statement in (("foreign", "CREATE TABLE theirs (x)"), ("newer", "PRAGMA user_version = 99")):
        with sqlite3.connect(tmp_path / name) as connection:
            connection.execute(statement)
    for name in ("garbage", "foreign", "newer"):
        with pytest.raises(InputError, match=name):
            Ledger.open(tmp_path / name)
    assert read_attempts(tmp_path / "missing") == []


FATES = st.sampled_from(["settle", "fail", "lose", "kill"])
STEPS = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 4), FATES), max_size=12)
"""Which process sends, whether it is a mark of the judge, its worst case in cents, and what becomes of it."""


@settings(deadline=None, max_examples=20)
@given(steps=STEPS, most=st.integers(1, 9))
def test_a_cap_of_one_command_holds_over_processes_and_restarts(
    steps: list[tuple[bool, bool, int, str]], most: int
) -> None:
    """What the judge has spent and reserved never passes its cap, whoever sends and whatever is killed in the middle.

    The running sum is the sum over the attempts, and other commands are not held back.
    """
    cap = Cap("generate.judge.max_usd", Decimal(most) / 100)

    async def run(path: Path) -> None:
        for in_second, is_mark, cents, fate in steps:
            with Ledger.open(path) as first, Ledger.open(path) as second:
                ledger = second if in_second else first
                command, worst = ("judge", cap) if is_mark else ("generate", None), Decimal(cents) / 100
                sent = Intent("k", command[0], None, "m", "standard", "{}", worst, command[1])
                with LedgerView(path) as view:
                    room = not is_mark or view.committed_by("judge") + worst <= cap.max_usd
                if not room:
                    with pytest.raises(BudgetError, match=r"generate\.judge\.max_usd"):
                        await ledger.reserve(sent)
                    continue
                ticket = await ledger.reserve(sent)
                assert isinstance(ticket, Ticket)
                if fate == "settle":
                    await ledger.settle(ticket.attempt, paid(str(worst / 2)))
                elif fate == "fail":
                    await ledger.fail(ticket.attempt, "http 503")
                elif fate == "lose":
                    await ledger.lose(ticket.attempt, "timeout")
            with LedgerView(path) as view:
                for name in ("judge", "generate"):
                    each = [row for row in read_attempts(path) if row.command == name]
                    held = sum(row.reserved_usd if row.status == "open" else row.cost_usd for row in each)
                    assert view.committed_by(name) == held
                assert view.committed_by("judge") <= cap.max_usd

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder) / "ledger.sqlite3"))


def ledger_of_version_1(folder: Path) -> Path:
    """A ledger as the first version left it, with one answer."""
    path = folder / "old.sqlite3"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(ATTEMPTS)
        connection.execute(
            "INSERT INTO attempts (key, command, model, service, request, status, reserved, cost, reply, latency_s,"
            " price_id, started_at, finished_at) VALUES ('k', 'generate', 'm', 'standard', '{}', 'done', 5, 7, 'raw',"
            " 0.1, 'p', '2026-11-01T00:00:00+00:00', '2026-11-01T00:00:01+00:00')"
        )
        connection.execute("UPDATE totals SET spent = 7")
        connection.execute(f"PRAGMA application_id = {0x506F7473}")
        connection.execute("PRAGMA user_version = 1")
    return path


def test_half_a_migration_is_none(tmp_path: Path) -> None:
    """A ledger whose migration was broken off in the middle stays as it was, and the next opening brings it up to date."""
    path = ledger_of_version_1(tmp_path)

    def refuse(action: int, name: str | None, *_: object) -> int:
        return sqlite3.SQLITE_DENY if (action, name) == (sqlite3.SQLITE_CREATE_TABLE, "jobs") else sqlite3.SQLITE_OK

    with closing(connect(path)) as connection:
        connection.set_authorizer(refuse)
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            prepare(connection, path)
    with Ledger.open(path) as ledger:
        assert ledger.answer("k") is not None


async def test_a_ledger_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    """Its attempts and sums stay, and it takes new ones."""
    path = ledger_of_version_1(tmp_path)
    with Ledger.open(path) as ledger:
        stored = ledger.answer("k")
        assert stored is not None
        assert stored.reply == "raw"
        await reserve(ledger, "new")
        assert ledger.spent() == Decimal("7e-12")
    with LedgerView(path) as view:
        assert view.committed_by("generate") == Decimal("7e-12") + Decimal("0.01")
