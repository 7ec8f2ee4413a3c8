"""The ledger summed by SQLite says what its attempts say one by one."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from potstill.errors import InputError
from potstill.ledger import Intent, Ledger, Settlement, Ticket, paid_work, read_attempts, read_sums
from potstill.records import Usage

ROLES = ("a", "b", None)


async def fill(path: Path) -> None:
    """Thirty attempts: answered, billed failures and lost ones, in three roles, at odd prices."""
    with Ledger.open(path) as ledger:
        for number in range(30):
            role = ROLES[number % 3]
            intent = Intent(f"k{number}", "generate", role, "m", "flex", "{}", Decimal("0.0012345678"))
            ticket = await ledger.reserve(intent)
            assert isinstance(ticket, Ticket)
            usage = Usage(input_tokens=number, output_tokens=10 * number, thinking_tokens=1)
            settlement = Settlement("{}", usage, Decimal(number) / 1_000_003, "p", 0.1)
            if number % 5 == 0:
                await ledger.lose(ticket.attempt, "timeout")
            elif number % 7 == 0:
                await ledger.fail(ticket.attempt, "empty", settlement)
            else:
                await ledger.settle(ticket.attempt, settlement)


async def test_sums_are_the_attempts_added_up(tmp_path: Path) -> None:
    """Counts, tokens and dollars by role and status are equal, to the picodollar."""
    path = tmp_path / "ledger.sqlite3"
    await fill(path)
    attempts, sums = read_attempts(path), read_sums(path)
    counts = Counter((attempt.role, attempt.status) for attempt in attempts)
    assert {(found.role, found.status): found.count for found in sums} == counts
    assert sum(found.cost_usd for found in sums) == sum(attempt.cost_usd for attempt in attempts)
    assert sum(found.reserved_usd for found in sums if found.status == "open") == 6 * Decimal("0.0012345678")
    assert sum((found.usage for found in sums), Usage()) == sum((attempt.usage for attempt in attempts), Usage())
    assert {found.day for found in sums} == {attempt.started_at.date() for attempt in attempts}


async def test_answers_are_found_by_key_and_lengths_by_role(tmp_path: Path) -> None:
    """A billed input by its key; of each role the newest answers, no more than asked for; nothing for a lost one."""
    path = tmp_path / "ledger.sqlite3"
    await fill(path)
    with paid_work(path) as paid:
        assert not paid.empty
        assert paid.input_tokens("k11") == 11
        assert paid.input_tokens("k10") is None
        lengths = paid.lengths("m", "generate", 2)
        assert Counter(found.role for found in lengths) == {"a": 2, "b": 2, "-": 2}
        assert [found.output_tokens for found in lengths if found.role == "a"] == [241, 271]
        assert paid.lengths("m", "infer", 2) == ()


def test_no_file_is_empty_and_another_file_is_refused(tmp_path: Path) -> None:
    """A missing ledger has nothing in it and stays missing; a file that is none is named."""
    path = tmp_path / "ledger.sqlite3"
    assert read_sums(path) == []
    with paid_work(path) as paid:
        assert paid.empty
        assert paid.input_tokens("k") is None
    assert not path.exists()
    path.write_text("no ledger")
    with pytest.raises(InputError, match=r"ledger\.sqlite3"):
        read_sums(path)


def test_a_ledger_that_cannot_be_opened_is_the_machines_fault(tmp_path: Path) -> None:
    """Where the system gives no file, every reader says so as an expected failure."""
    path = tmp_path / "ledger.sqlite3"
    Ledger.open(path).close()
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from potstill.errors import MachineError\nfrom potstill.ledger import LedgerView, read_attempts, read_sums\n"
        "path = Path(sys.argv[1])\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "for read in (read_attempts, read_sums, lambda path: LedgerView(path).__enter__()):\n"
        "    try:\n        read(path)\n    except MachineError as error:\n        print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert result.stdout.count("cannot be opened") == 3
