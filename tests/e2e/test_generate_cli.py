"""`potstill generate` by the installed command against the emulator: exit codes, resume, and kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.conftest import COMMAND, Run

from potstill.config import Config, Secrets, with_values
from potstill.generate.run import Outcome, Terms, generate
from potstill.teacher.emulator import EmulatorSettings, Running, running
from potstill.teacher.line import StoppedError
from potstill.workspace import Workspace

KEY = {"GEMINI_API_KEY": "a-key-for-the-emulator"}
FLAGS = ("--prompts", "questions.txt", "--set", "teacher.rpm=null")


@pytest.fixture
def teacher() -> Iterator[Running]:
    """An emulator that answers at once."""
    with running(EmulatorSettings(faq="hardware.en", latency_s=0.0)) as emulator:
        yield emulator


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Forty questions in the folder where the command runs."""
    path = tmp_path / "questions.txt"
    path.write_text("".join(f"How much memory does model number {number} need?\n" for number in range(40)))
    return path


def lines(path: Path) -> list[dict]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def dataset(workspace: Path) -> list[dict]:
    """All samples of all splits."""
    return [row for name in ("train", "validation", "test") for row in lines(workspace / "dataset" / f"{name}.jsonl")]


@pytest.mark.usefixtures("questions")
def test_makes_a_dataset_and_pays_once(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """A second run pays nothing and leaves the same bytes; a new role pays for its own cells only."""
    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
    first = potstill("generate", *FLAGS, "--json", env=env)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["paid"] == 40
    before = (tmp_path / "workspace" / "dataset" / "train.jsonl").read_bytes()
    assert json.loads(potstill("generate", *FLAGS, "--json", env=env).stdout)["paid"] == 0
    assert (tmp_path / "workspace" / "dataset" / "train.jsonl").read_bytes() == before
    more = potstill("generate", *FLAGS, "--roles", "hardware-expert,cost-analyst", "--json", env=env)
    assert json.loads(more.stdout)["paid"] == 40
    assert len(teacher.log()) == 80
    splits = [
        {row["prompt_id"] for row in lines(tmp_path / "workspace" / "dataset" / f"{n}.jsonl")}
        for n in ("train", "test")
    ]
    assert not splits[0] & splits[1]


@pytest.mark.usefixtures("questions")
def test_no_key_is_3_and_a_refused_key_too(potstill: Run) -> None:
    """A missing key and one that the teacher refuses end in 3; the key appears nowhere."""
    assert potstill("generate", *FLAGS).returncode == 3
    with running(EmulatorSettings(keys=("the-right-one",))) as strict:
        result = potstill("generate", *FLAGS, env={**KEY, "GOOGLE_GEMINI_BASE_URL": strict.url})
    assert result.returncode == 3
    assert KEY["GEMINI_API_KEY"] not in result.stdout + result.stderr


def test_bad_input_is_2(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """A missing file, an empty one and a bad line end in 2 with the file's name, and nothing is sent."""
    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "fine"}\n{"prompt": 3}\n')
    for name, needle in (("none.txt", "none.txt"), ("empty.txt", "empty.txt"), ("bad.jsonl", "bad.jsonl:2")):
        result = potstill("generate", "--prompts", name, env=env)
        assert result.returncode == 2
        assert needle in result.stderr
    assert teacher.log() == []


@pytest.mark.usefixtures("questions")
def test_budget_is_4_and_holds(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """The run stops with 4 before the budget is passed; what was paid for is in the dataset."""
    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
    result = potstill("generate", *FLAGS, "--max-cost", "0.004", "--json", env=env)
    assert result.returncode == 4, result.stderr
    document = json.loads(result.stdout)
    assert 0 < document["paid"] < 40
    assert float(document["spent_usd"]) <= 0.004
    assert len(dataset(tmp_path / "workspace")) + sum(document["rejected"].values()) == document["paid"]


@pytest.mark.usefixtures("questions")
def test_daily_quota_is_5_and_says_when(potstill: Run) -> None:
    """A spent daily quota ends in 5 with the time to come back, in spite of its short RetryInfo."""
    with running(EmulatorSettings(latency_s=0.0, rpd=10)) as short:
        result = potstill("generate", *FLAGS, "--json", env={**KEY, "GOOGLE_GEMINI_BASE_URL": short.url})
    assert result.returncode == 5, result.stderr
    assert json.loads(result.stdout)["paid"] == 10
    assert "UTC" in result.stderr
    assert datetime.fromisoformat(json.loads(result.stdout)["retry_at"]) > datetime.now(UTC)


@pytest.mark.usefixtures("questions")
def test_a_teacher_out_of_reach_is_7_before_every_question_has_failed(potstill: Run, teacher: Running) -> None:
    """A wrong address ends the run after one round, with nothing held; with the right one the same command completes."""
    flags = (*FLAGS, "--json", "--set", "teacher.max_attempts=1", "--set", "teacher.max_concurrency=4")
    away = potstill("generate", *flags, env={**KEY, "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:9"})
    assert away.returncode == 7, away.stderr
    assert "cannot be reached" in away.stderr
    found = json.loads(away.stdout)
    assert (len(found["failed"]) + found["left"], found["possibly_paid"]) == (40, [])
    assert found["left"] > 20
    back = potstill("generate", *flags, env={**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url})
    assert (back.returncode, json.loads(back.stdout)["paid"]) == (0, 40)


@pytest.mark.usefixtures("questions")
def test_failed_cells_are_6_and_a_rerun_retries_just_them(potstill: Run, teacher: Running) -> None:
    """Cells that fail for good are listed with 6; the same command then asks for these alone."""
    flags = (*FLAGS, "--json", "--set", "teacher.max_attempts=1")
    with running(EmulatorSettings(latency_s=0.0, faults={"http-503": 0.3})) as flaky:
        result = potstill("generate", *flags, env={**KEY, "GOOGLE_GEMINI_BASE_URL": flaky.url})
    document = json.loads(result.stdout)
    assert result.returncode == 6, result.stderr
    assert {item["reason"] for item in document["failed"]} == {"http 503"}
    again = potstill("generate", *flags, env={**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url})
    assert again.returncode == 0
    assert json.loads(again.stdout)["paid"] == len(document["failed"]) == len(teacher.log())


def test_kill_9_loses_and_repays_only_what_was_in_flight(potstill: Run, tmp_path: Path) -> None:
    """A run of 1,000 that is killed three times at random is completed by the same command.

    No line stands twice; only requests in flight at a kill were paid twice, and each of those is listed.
    """
    (tmp_path / "thousand.txt").write_text("".join(f"How long does part number {n} last?\n" for n in range(1000)))
    flags = ("--prompts", "thousand.txt", "--set", "teacher.rpm=null", "--set", "teacher.max_concurrency=16")
    draw = random.Random(4)
    with running(EmulatorSettings(latency_s=0.02)) as teacher:
        env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
        for _ in range(3):
            command = [str(COMMAND), "generate", *flags, "-q"]
            with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **env}) as process:
                enough, deadline = len(teacher.log()) + draw.randrange(1, 300), time.monotonic() + 60
                while len(teacher.log()) < enough and time.monotonic() < deadline:
                    time.sleep(0.001)
                process.kill()
        result = potstill("generate", *flags, "--json", env=env)
        assert result.returncode == 0, result.stderr
        paid = Counter(entry.digest for entry in teacher.log())
    document = json.loads(result.stdout)
    twice = sum(count - 1 for count in paid.values())
    assert len(paid) == 1000
    assert twice <= len(document["possibly_paid"]) <= 3 * 16
    ids = [row["id"] for row in dataset(tmp_path / "workspace")]
    assert len(ids) == len(set(ids)) == 1000 - sum(document["rejected"].values())


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
async def test_two_runs_at_once_pay_once(questions: Path, tmp_path: Path) -> None:
    """The second waits, says so, and finds every answer in the ledger; a stop ends the waiting."""
    said: list[str] = []
    with running(EmulatorSettings(latency_s=0.02)) as teacher:
        section = {"rpm": None, "base_url": teacher.url}
        values = {"teacher": section, "generate": {"prompts": (str(questions),)}}
        config = with_values(Config(workspace=str(tmp_path / "w")), **values)

        def run(stop: asyncio.Event) -> Awaitable[Outcome]:
            terms = Terms(lambda _: None, stop, say=said.append)
            return generate(config, Secrets(SecretStr("a-key")), Workspace(tmp_path / "w"), terms)

        stop = asyncio.Event()
        stop.set()
        one, other, stopped = await asyncio.gather(
            run(asyncio.Event()), run(asyncio.Event()), run(stop), return_exceptions=True
        )
        assert len(teacher.log()) == 40
    assert isinstance(one, Outcome)
    assert isinstance(other, Outcome)
    assert (one.progress.paid, other.progress.paid, other.progress.reused) == (40, 0, 40)
    assert isinstance(stopped, StoppedError)
    assert any("waiting" in text for text in said)


@pytest.mark.usefixtures("questions")
def test_an_interrupt_is_130(potstill: Run, tmp_path: Path) -> None:
    """Ctrl-C ends in 130, which the last event tells too, and the same command goes on from there."""
    with running(EmulatorSettings(latency_s=0.3)) as slow:
        env = {**KEY, "GOOGLE_GEMINI_BASE_URL": slow.url}
        command = [str(COMMAND), "generate", *FLAGS, "-q", "--json-events"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **env}, text=True, **pipes)
        deadline = time.monotonic() + 60
        while len(slow.log()) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        events, complaint = process.communicate(timeout=60)
        assert process.returncode == 130, complaint
        assert json.loads(events.splitlines()[-1])["exit_code"] == 130
        assert "the same command goes on from here" in complaint
        assert potstill("generate", *FLAGS, env=env).returncode == 0
