"""`potstill infer` on a terminal, and interrupted: by the installed command against the emulator."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
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
            path = Workspace(tmp_path / "w").ledger
            until = time.monotonic() + 60
            while not (path.is_file() and _attempts(path)):
                assert time.monotonic() < until
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
    (attempt,) = _attempts(path)
    assert attempt in {("open", "cancelled"), ("failed", "not sent")}


def _attempts(path: Path) -> list[tuple[str, str | None]]:
    with Ledger.open(path) as ledger:
        return [(attempt.status, attempt.reason) for attempt in ledger.attempts()]
