"""The ledger against the emulator's own billing log, over faults, kills and resumes: to the last digit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from decimal import Decimal
from pathlib import Path

from tests.conftest import COMMAND, Run

from potstill.teacher.emulator import EmulatorSettings, running

KEY = {"GEMINI_API_KEY": "a-key-for-the-emulator"}
FAULTS = {"http-503": 0.06, "reset": 0.06, "truncated": 0.06, "empty": 0.06, "safety": 0.03, "thinking-limit": 0.03}
FLAGS = (
    *("--prompts", "questions.txt", "--roles", "hardware-expert,cost-analyst", "--set", "teacher.rpm=null"),
    *("--set", "teacher.max_concurrency=8", "--set", "teacher.thinking_budget=64"),
    *("--set", "teacher.max_attempts=3"),
)


def kill_in_the_middle(tmp_path: Path, env: dict[str, str], log: Path, lines: int) -> None:
    """Start generate, and kill it as soon as the log has so many lines."""
    command = [str(COMMAND), "generate", *FLAGS, "-q"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **env}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and log.read_text().count("\n") >= lines:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_report_and_bill_agree_to_the_last_digit(potstill: Run, tmp_path: Path) -> None:
    """After two kills and a resume under mixed faults every billed token is in the ledger, or held as possibly paid.

    And once everything is answered, the estimate of the same config has nothing left to pay for.
    """
    (tmp_path / "questions.txt").write_text("".join(f"How much memory does model {n} need?\n" for n in range(40)))
    log = tmp_path / "billing.jsonl"
    settings = EmulatorSettings(latency_s=0.05, faults=FAULTS, thinking_tokens=20, log=str(log), seed=5)
    with running(settings) as emulator:
        env = {**KEY, "GOOGLE_GEMINI_BASE_URL": emulator.url}
        kill_in_the_middle(tmp_path, env, log, 25)
        kill_in_the_middle(tmp_path, env, log, 50)
        done = potstill("generate", *FLAGS, "--json", env=env)
    assert done.returncode in {0, 6}, done.stderr
    result = potstill("cost", "report", "--billing", "billing.jsonl", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    matched = found["reconciled"]
    assert matched["agrees"]
    assert Decimal(matched["unexplained_usd"]) == 0
    assert Decimal(matched["ledger_usd"]) == Decimal(found["total"]["usd"]) > 0
    assert matched["lost"] > 0
    assert Decimal(matched["log_usd"]) == Decimal(found["total"]["usd"]) + Decimal(matched["lost_usd"])
    assert Decimal(matched["lost_usd"]) <= Decimal(found["total"]["possibly_usd"])
    assert found["total"]["failed"] > 0
    settled = ("--settle", matched["lost_usd"], "--billing", "billing.jsonl", "--json")
    after = json.loads(potstill("cost", "report", *settled).stdout)
    assert after["reconciled"]["agrees"]
    assert (after["total"]["usd"], after["total"]["possibly_usd"]) == (matched["log_usd"], "0")
    left = json.loads(potstill("cost", "estimate", *FLAGS, "--json").stdout)
    assert left["paid"] == found["total"]["answers"]
    assert left["todo"] == 80 - left["paid"]


def test_flex_and_batch_agree_as_well(potstill: Run, tmp_path: Path) -> None:
    """One ledger with answers of two half-price services: billed by line of the batch and by request, and equal."""
    (tmp_path / "questions.txt").write_text("".join(f"How much memory does model {n} need?\n" for n in range(10)))
    settings = EmulatorSettings(latency_s=0, batch_pending_s=0.1, batch_s=0.2, log=str(tmp_path / "bill.jsonl"))
    flags = ("--prompts", "questions.txt", "--set", "teacher.rpm=null", "--set", "teacher.batch_poll_s=0.05", "-q")
    with running(settings) as emulator:
        env = {**KEY, "GOOGLE_GEMINI_BASE_URL": emulator.url}
        batch = potstill("generate", *flags, "--set", "teacher.service=batch", env=env)
        more = ("--set", "teacher.service=flex", "--set", "generate.temperature=0.5")
        flex = potstill("generate", *flags, *more, env=env)
    assert (batch.returncode, flex.returncode) == (0, 0), batch.stderr + flex.stderr
    found = json.loads(potstill("cost", "report", "--billing", "bill.jsonl", "--json").stdout)
    assert set(found["groups"]["service"]) == {"batch", "flex"}
    assert found["reconciled"]["agrees"]
    assert Decimal(found["reconciled"]["log_usd"]) == Decimal(found["total"]["usd"]) > 0


def test_a_missing_attempt_ends_in_8(potstill: Run, tmp_path: Path) -> None:
    """A bill that the ledger does not know is said, and the exit code is not 0."""
    (tmp_path / "bill.jsonl").write_text(
        '{"at": "2026-11-24T12:00:00Z", "model": "gemini-3.5-flash-lite", "status": 200,'
        ' "billed": {"input_tokens": 500, "output_tokens": 2000}}\n'
    )
    result = potstill("cost", "report", "--billing", "bill.jsonl")
    assert result.returncode == 8
    assert "$0.00515 billed" in result.stdout
