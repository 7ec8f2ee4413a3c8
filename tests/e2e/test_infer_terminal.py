"""`potstill infer` on a terminal, interrupted, and twice at once: by the installed command against the emulator."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.conftest import COMMAND

from potstill.ledger import Ledger
from potstill.teacher.emulator import EmulatorSettings, running
from potstill.workspace import Workspace

QUESTION = "What does a GPU do all day?"
FAST = ("--set", "cache.encoder=hashing", "--set", "teacher.rpm=null", "-w", "w")


def env(url: str) -> dict[str, str]:
    """The environment that leads a command to an emulator."""
    return {**os.environ, "PYTHONWARNINGS": "ignore", "GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "any"}


def screen(arguments: list[str], folder: Path, url: str) -> list[bytes]:
    """What a command writes on a terminal of its own, read by read."""
    ours, theirs = pty.openpty()
    command = [str(COMMAND), "infer", *arguments, *FAST]
    with subprocess.Popen(command, cwd=folder, env=env(url), stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        seen: list[bytes] = []
        try:
            while piece := os.read(ours, 65536):
                seen.append(piece)
        except OSError:  # Linux's word for the end of a terminal
            pass
        os.close(ours)
    assert process.returncode == 0
    return seen


def test_answer_appears_on_a_terminal_while_it_is_written(tmp_path: Path) -> None:
    """Gemini's text is shown as it arrives, and once: the same text as an exact hit shows afterwards in one piece."""
    with running(EmulatorSettings(answer_tokens=200, latency_s=0)) as emulator:
        first = screen([QUESTION], tmp_path, emulator.url)
        again = screen([QUESTION], tmp_path, emulator.url)
        assert [entry.method for entry in emulator.log()] == ["streamGenerateContent"]
    assert b"".join(first) == b"".join(again)
    assert len(b"".join(first)) > 300


def test_interrupted_question_costs_nothing_further(tmp_path: Path) -> None:
    """Ctrl-C while Gemini is working: exit code 130, no further request, and the ledger says what may have been paid."""
    with running(EmulatorSettings(latency_s=600, latency_spread=0)) as emulator:
        command = [str(COMMAND), "infer", QUESTION, *FAST]
        with subprocess.Popen(command, cwd=tmp_path, env=env(emulator.url), stderr=subprocess.DEVNULL) as process:
            wait_for_attempt(tmp_path)
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(60) == 130
            finally:
                process.kill()
    (attempt,) = _attempts(Workspace(tmp_path / "w").ledger)
    assert attempt in {("open", "cancelled"), ("failed", "not sent")}


def test_chat_waits_for_words_and_ends_at_once(tmp_path: Path) -> None:
    """On a terminal an empty line is no turn and an outage ends nothing; Ctrl-C at the prompt ends the chat there and then."""
    with running(EmulatorSettings(latency_s=0, faults={"http-503": 1.0})) as emulator:
        ours, theirs = pty.openpty()
        command = [str(COMMAND), "infer", "--chat", *FAST, "--set", "teacher.max_attempts=1"]
        plain = {**env(emulator.url), "TERM": "dumb"}  # a prompt without a terminal's escape sequences behind it
        with subprocess.Popen(command, cwd=tmp_path, env=plain, stdin=theirs, stdout=theirs, stderr=theirs,
                              start_new_session=True) as process:  # fmt: skip
            os.close(theirs)
            seen = b""
            for typed in (b"\n", f"{QUESTION}\n".encode(), b"And why?\n", b""):
                while not seen.endswith(b"> "):
                    seen += os.read(ours, 65536)
                seen += b" "
                os.write(ours, typed)
            for _ in range(20):  # CPython loses a signal that comes between the prompt and its waiting for a key
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(3)
                    break
            process.kill()
        assert process.returncode == 130
        os.close(ours)
    assert seen.count(b"potstill: ") == 2


def infer(folder: Path, url: str) -> subprocess.Popen[str]:
    """The question, asked by a process of its own."""
    command = [str(COMMAND), "infer", QUESTION, *FAST, "--json"]
    return subprocess.Popen(command, cwd=folder, env=env(url), stdout=subprocess.PIPE, text=True)


def wait_for_attempt(folder: Path) -> None:
    """Wait until a request has been written down."""
    until = time.monotonic() + 60
    path = Workspace(folder / "w").ledger
    while not (path.is_file() and _attempts(path)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_processes_that_ask_the_same_pay_once(tmp_path: Path) -> None:
    """The second one waits for the first one's answer, which is an exact hit for it."""
    with running(EmulatorSettings(latency_s=6, latency_spread=0)) as emulator:
        with infer(tmp_path, emulator.url) as first:
            wait_for_attempt(tmp_path)
            with infer(tmp_path, emulator.url) as second:
                answers = [json.loads(process.communicate()[0]) for process in (first, second)]
        assert len(emulator.log()) == 1
    assert answers[0]["answer"] == answers[1]["answer"]
    assert [answer["trace"]["route"] for answer in answers] == ["teacher", "exact"]


def test_killed_owner_blocks_nobody(tmp_path: Path) -> None:
    """After kill -9 of the process that was asking, the one that waits asks by itself once the lease has run out."""
    with running(EmulatorSettings(latency_s=2, latency_spread=0)) as emulator:
        with infer(tmp_path, emulator.url) as first:
            wait_for_attempt(tmp_path)
            first.kill()
        with infer(tmp_path, emulator.url) as second:
            answer = json.loads(second.communicate()[0])
        assert answer["trace"]["route"] == "teacher"
    assert len(_attempts(Workspace(tmp_path / "w").ledger)) == 2


def _attempts(path: Path) -> list[tuple[str, str | None]]:
    with Ledger.open(path) as ledger:
        return [(attempt.status, attempt.reason) for attempt in ledger.attempts()]
