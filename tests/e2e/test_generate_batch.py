"""`potstill generate --service batch` by the installed command: found again after a kill, partial, refused, cancelled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import COMMAND, Run

from potstill.ledger import read_attempts
from potstill.teacher.emulator import EmulatorSettings, Running, running

KEY = {"GEMINI_API_KEY": "a-key-for-the-emulator"}
FLAGS = ("--prompts", "questions.txt", "--service", "batch", "--set", "teacher.batch_poll_s=0.05")


@pytest.fixture(autouse=True)
def questions(tmp_path: Path) -> Path:
    """Forty questions in the folder where the command runs."""
    path = tmp_path / "questions.txt"
    path.write_text("".join(f"How much memory does model number {number} need?\n" for number in range(40)))
    return path


def env(teacher: Running) -> dict[str, str]:
    """Key and address of an emulator."""
    return {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}


def paid(teacher: Running) -> Counter[str]:
    """How often each request was answered, and billed."""
    return Counter(
        entry.digest for entry in teacher.log() if entry.method == "generateContent" and entry.billed.input_tokens
    )


def answers(workspace: Path) -> set[str]:
    """Ids of all samples, sifted out or not."""
    files = [workspace / "dataset" / f"{name}.jsonl" for name in ("train", "validation", "test", "rejected")]
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    found = [row["sample"]["id"] if "sample" in row and isinstance(row["sample"], dict) else row["id"] for row in rows]
    assert len(found) == len(set(found))
    return set(found)


def test_batch_jobs_fill_a_dataset_at_half_price(potstill: Run, tmp_path: Path) -> None:
    """The run is split into jobs; each answer is paid once, at the batch price; a second run sends nothing."""
    with running(EmulatorSettings()) as teacher:
        result = potstill("generate", *FLAGS, "--set", "teacher.batch_size=15", "--json", env=env(teacher))
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["paid"] == 40
        jobs = [entry for entry in teacher.log() if entry.method == "batchGenerateContent"]
        assert len(jobs) == 3
        again = potstill("generate", *FLAGS, "--json", env=env(teacher))
        assert json.loads(again.stdout)["reused"] == 40
        assert set(paid(teacher).values()) == {1}
    attempts = read_attempts(tmp_path / "workspace" / "ledger.sqlite3")
    assert {row.service for row in attempts} == {"batch"}
    assert all("/batch/" in (row.price_id or "") for row in attempts)
    assert len(answers(tmp_path / "workspace")) == 40
    assert list((tmp_path / "workspace" / "batches").iterdir()) == []


def killed_after_creation(teacher: Running, folder: Path, number: signal.Signals) -> int:
    """Run the command, and end it by a signal as soon as its job was created; gives its exit code."""
    command = [str(COMMAND), "generate", *FLAGS, "-q"]
    with subprocess.Popen(command, cwd=folder, env={**os.environ, **env(teacher)}) as process:
        deadline = time.monotonic() + 60
        while not teacher.log() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_finds_its_job_again(potstill: Run, tmp_path: Path, number: signal.Signals) -> None:
    """Killed while a job runs, the same command waits for that job: one job, each line paid once, nothing lost."""
    with running(EmulatorSettings(batch_pending_s=2)) as teacher:
        code = killed_after_creation(teacher, tmp_path, number)
        assert code == (130 if number is signal.SIGINT else -signal.SIGKILL)
        elsewhere = potstill("generate", "--prompts", "questions.txt", env=env(teacher))
        assert elsewhere.returncode == 2
        assert "--service batch" in elsewhere.stderr
        result = potstill("generate", *FLAGS, "--json", env=env(teacher))
        assert result.returncode == 0, result.stderr
        assert sum(entry.method == "batchGenerateContent" for entry in teacher.log()) == 1
        assert set(paid(teacher).values()) == {1}
    assert json.loads(result.stdout)["possibly_paid"] == []
    assert len(answers(tmp_path / "workspace")) == 40


def test_a_creation_whose_reply_was_lost_is_not_repeated(potstill: Run) -> None:
    """The job was taken on but nobody heard so: it is found by its label, and each line is paid once."""
    with running(EmulatorSettings(faults={"batch-lost": 1.0})) as teacher:
        result = potstill("generate", *FLAGS, "--json", env=env(teacher))
        assert result.returncode == 0, result.stderr
        assert sum(entry.method == "batchGenerateContent" for entry in teacher.log()) == 1
        assert sum(paid(teacher).values()) == 40


def test_lines_that_fail_are_sent_again_and_then_listed(potstill: Run, tmp_path: Path) -> None:
    """Lines with a passing error go into the next job; those that would fail again are listed with 6."""
    with running(EmulatorSettings(faults={"http-503": 0.3})) as teacher:
        result = potstill("generate", *FLAGS, "--set", "teacher.max_attempts=12", "--json", env=env(teacher))
        assert result.returncode == 0, result.stderr
        assert set(paid(teacher).values()) == {1}
    assert len(answers(tmp_path / "workspace")) == 40
    with running(EmulatorSettings(faults={"http-400": 1.0})) as refusing:
        flags = (*FLAGS, "--samples", "2", "--json")
        document: dict[str, Any] = json.loads(potstill("generate", *flags, env=env(refusing)).stdout)
        assert document["exit_code"] == 6
        assert len(document["failed"]) == 40
        assert "400" in document["failed"][0]["detail"]
        assert len([entry for entry in refusing.log() if entry.method == "batchGenerateContent"]) == 1


@pytest.mark.parametrize("partial", [True, False])
def test_an_expired_job_keeps_what_it_gave(potstill: Run, *, partial: bool) -> None:
    """Half of each job comes to nothing: what was handed out is kept; what may have been billed is listed."""
    settings = EmulatorSettings(faults={"batch-expired": 1.0}, batch_partial=partial)
    with running(settings) as teacher:
        result = potstill("generate", *FLAGS, "--set", "teacher.max_attempts=1", "--json", env=env(teacher))
    document = json.loads(result.stdout)
    assert result.returncode == 6, result.stderr
    assert document["paid"] == (20 if partial else 0)
    assert len(document["failed"]) == 40 - document["paid"]
    assert len(document["possibly_paid"]) == (0 if partial else 40)


def test_cancelled_jobs_end_and_the_run_goes_on_without_them(potstill: Run, tmp_path: Path) -> None:
    """--cancel-batches ends what an earlier run left; after it the standard service may ask."""
    with running(EmulatorSettings(batch_pending_s=300)) as teacher:
        killed_after_creation(teacher, tmp_path, signal.SIGKILL)
        cancelled = potstill("generate", *FLAGS, "--cancel-batches", "--json", env=env(teacher))
        assert json.loads(cancelled.stdout)["possibly_paid"] == []
        result = potstill("generate", "--prompts", "questions.txt", "--rpm", "null", "--json", env=env(teacher))
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["paid"] == 40


def test_a_budget_pays_for_as_much_as_it_holds(potstill: Run) -> None:
    """Jobs reserve at worst case; what they did not cost pays for the next; the end is 4 with the budget kept."""
    with running(EmulatorSettings()) as teacher:
        result = potstill("generate", *FLAGS, "--max-cost", "0.0016", "--json", env=env(teacher))
    document = json.loads(result.stdout)
    assert result.returncode == 4, result.stderr
    assert 0 < document["paid"] < 40
    assert float(document["spent_usd"]) <= 0.0016


def test_a_full_queue_is_waited_for_and_then_5(potstill: Run) -> None:
    """Two jobs take turns in a queue that holds one; a queue that stays full ends in 5, and the job waits."""
    with running(EmulatorSettings(batch_jobs=1)) as teacher:
        result = potstill("generate", *FLAGS, "--set", "teacher.batch_size=20", "--json", env=env(teacher))
        assert result.returncode == 0, result.stderr
    with running(EmulatorSettings(batch_tokens=1)) as full:
        result = potstill("generate", *FLAGS, "--samples", "2", "--json", env=env(full))
        assert result.returncode == 5, result.stderr
        assert "queue is full" in result.stderr
