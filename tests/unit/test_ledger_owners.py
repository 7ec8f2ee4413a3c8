"""Equal requests of several processes on one ledger: one pays, the others wait for it as long as it lives."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from tests.conftest import Run

from potstill.config import PricesConfig, TeacherConfig
from potstill.errors import TeacherError
from potstill.ledger import Elsewhere, Intent, Ledger, Settlement, Ticket, read_sums
from potstill.pricing.book import load_prices
from potstill.records import Message, Usage
from potstill.teacher.calls import TeacherRequest, build_request
from potstill.teacher.line import StoppedError
from potstill.teacher.paid import Accounts, PaidTeacher
from potstill.teacher.scripted import ScriptedTransport, reply_200, reply_error

TEACHER = TeacherConfig(rpm=None, max_attempts=3)
PRICES = load_prices(PricesConfig(overrides={TEACHER.model: {"input": Decimal(1), "output": Decimal(10)}}))
ANSWERED = Settlement("{}", Usage(), Decimal("0.001"), "price", 0.5)
HOLD = """
import asyncio, sys, time
from decimal import Decimal
from pathlib import Path
from potstill.ledger import Intent, Ledger

with Ledger.open(Path(sys.argv[1])) as ledger:
    intent = Intent(sys.argv[2], "infer", None, "m", "standard", "{}", Decimal("0.01"), patience_s=60.0)
    print(asyncio.run(ledger.reserve(intent)).attempt, flush=True)
    time.sleep(600)
"""
"""Another process that has sent a request, and waits."""


def intent(key: str, patience_s: float | None = 60.0) -> Intent:
    """Something to send that costs a cent at most."""
    return Intent(key, "generate", None, "m", "standard", "{}", Decimal("0.01"), patience_s=patience_s)


def question() -> TeacherRequest:
    """The same question each time."""
    return build_request(TEACHER, [Message(role="user", content="a")], temperature=1, max_output_tokens=100)


@contextmanager
def holding(path: Path, key: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has a request under way."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), key], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "1"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def open_sums(path: Path) -> tuple[int, int]:
    """How many attempts are under way, and how many possibly paid."""
    found = [group for group in read_sums(path) if group.status == "open"]
    under_way = sum(group.count for group in found if group.under_way)
    return under_way, sum(group.count for group in found) - under_way


async def test_a_request_of_a_living_process_is_waited_for(tmp_path: Path) -> None:
    """It is under way, not possibly paid; as soon as its process is killed, even by SIGKILL, it blocks nobody."""
    path = tmp_path / "ledger.sqlite3"
    with Ledger.open(path) as ledger, holding(path, "k") as process:
        assert isinstance(await ledger.reserve(intent("k")), Elsewhere)
        assert isinstance(await ledger.reserve(intent("other")), Ticket)
        assert isinstance(await ledger.reserve(intent("k", patience_s=None)), Ticket), (
            "whoever does not ask is not held"
        )
        assert isinstance(await ledger.reserve(intent("k", patience_s=0.0)), Ticket), "one that is long overdue"
        assert ledger.under_way("k", 60.0)
        assert list(ledger.open_attempts()) == []
        assert open_sums(path) == (4, 0)
        process.kill()
        process.wait(timeout=60)
        assert not ledger.under_way("k", 60.0)
        assert [row.id for row in ledger.open_attempts()] == [1]
        assert open_sums(path) == (3, 1)
        assert isinstance(await ledger.reserve(intent("k")), Ticket)
    assert open_sums(path) == (0, 5)


def test_the_report_tells_what_is_under_way_apart(potstill: Run, tmp_path: Path) -> None:
    """While the process lives it is a line of its own; once it is killed, it is possibly paid."""
    (tmp_path / "workspace").mkdir()
    with holding(tmp_path / "workspace" / "ledger.sqlite3", "k"):
        assert "under way: 1 attempt, at most $0.01" in potstill("cost", "report").stdout
    total = json.loads(potstill("cost", "report", "--json").stdout)["total"]
    assert (total["open"], total["under_way"]) == (1, 0)


async def test_an_answer_that_came_meanwhile_is_not_paid_again(tmp_path: Path) -> None:
    """The transaction that would write the intent looks for it; a failed or a lost attempt does not stand in the way."""
    path = tmp_path / "ledger.sqlite3"
    with Ledger.open(path) as first, Ledger.open(path) as second:
        for key, end in (("failed", first.fail), ("lost", first.lose)):
            ticket = await first.reserve(intent(key))
            assert isinstance(ticket, Ticket)
            await end(ticket.attempt, "why")
            assert isinstance(await second.reserve(intent(key)), Ticket)
        ticket = await first.reserve(intent("k"))
        assert isinstance(ticket, Ticket)
        await first.settle(ticket.attempt, ANSWERED)
        assert isinstance(await second.reserve(intent("k")), Elsewhere)


def test_nothing_is_left_beside_a_ledger(tmp_path: Path) -> None:
    """Neither by one that was closed nor, a minute later, by one that was killed."""
    path = tmp_path / "ledger.sqlite3"
    with holding(path, "k"):
        pass
    (left,) = tmp_path.glob("*-owner-*")
    with holding_nothing(path):
        assert left.exists(), "it might be about to be locked"
    os.utime(left, (time.time() - 100,) * 2)
    with holding_nothing(path):
        pass
    assert not list(tmp_path.glob("*-owner-*"))


@contextmanager
def holding_nothing(path: Path) -> Iterator[None]:
    """A ledger that is opened, written and closed."""
    with Ledger.open(path) as ledger:
        asyncio.run(ledger.reserve(intent("new", patience_s=None)))
        yield


async def test_two_teachers_on_one_ledger_pay_once(tmp_path: Path) -> None:
    """The second takes the first one's answer at no cost, and pays itself where the first one failed."""
    path = tmp_path / "ledger.sqlite3"
    slow = ScriptedTransport([reply_200("yes")], delay_s=0.3)
    with Ledger.open(path) as mine, Ledger.open(path) as theirs:
        teachers = [PaidTeacher(TEACHER, Accounts(ledger, PRICES, "infer"), slow) for ledger in (mine, theirs)]
        answers = await asyncio.gather(*(teacher.ask(question()) for teacher in teachers))
        assert sorted((answer.text, answer.reused) for answer in answers) == [("yes", False), ("yes", True)]
        assert len(slow.sent) == 1
        assert mine.spent() == sum(answer.cost_usd for answer in answers if not answer.reused)


async def test_who_waits_for_a_failure_asks_itself(tmp_path: Path) -> None:
    """A refusal of the first one's request is no answer for the second."""
    path = tmp_path / "ledger.sqlite3"
    refused = ScriptedTransport([reply_error(400, "INVALID_ARGUMENT", "no")], delay_s=0.3)
    good = ScriptedTransport([reply_200("yes")])
    with Ledger.open(path) as mine, Ledger.open(path) as theirs:
        first = asyncio.create_task(PaidTeacher(TEACHER, Accounts(mine, PRICES, "infer"), refused).ask(question()))
        await asyncio.sleep(0.1)
        assert refused.sent
        answer = await PaidTeacher(TEACHER, Accounts(theirs, PRICES, "infer"), good).ask(question())
        assert (answer.text, answer.reused) == ("yes", False)
        with pytest.raises(TeacherError, match="no"):
            await first


async def test_a_stop_ends_the_wait_for_another(tmp_path: Path) -> None:
    """Who waits for another process is turned away like everyone who waits."""
    path = tmp_path / "ledger.sqlite3"
    with Ledger.open(path) as ledger, holding(path, question().key):
        teacher = PaidTeacher(TEACHER, Accounts(ledger, PRICES, "infer"), ScriptedTransport([reply_200("yes")]))
        asked = asyncio.create_task(teacher.ask(question()))
        await asyncio.sleep(0.3)
        assert not asked.done()
        teacher.stop()
        with pytest.raises(StoppedError):
            await asked


async def test_a_stored_answer_that_cannot_be_read_is_asked_again(tmp_path: Path) -> None:
    """It is no reason to wait for ever."""
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        ticket = await ledger.reserve(intent(question().key))
        assert isinstance(ticket, Ticket)
        await ledger.settle(ticket.attempt, ANSWERED)
        teacher = PaidTeacher(TEACHER, Accounts(ledger, PRICES, "infer"), ScriptedTransport([reply_200("yes")]))
        assert (await teacher.ask(question())).text == "yes"
