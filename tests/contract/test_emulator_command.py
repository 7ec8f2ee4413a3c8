"""`potstill emulator` as installed: its options, its log, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import httpx2
import pytest
from tests.conftest import COMMAND, Run

ALL_OPTIONS = {
    "--length": {"answer_tokens": 30, "answer_spread": 0.5, "thinking_tokens": 9, "thinking_spread": 0.1},
    "--quota": {"rpm": 5, "tpm": 1000, "rpd": 20, "spend_usd": "2.5"},
    "--batch": {"pending_s": 1.0, "s": 2.0, "expiry_s": 3.0, "partial": True, "jobs": 4, "tokens": 5},
    "--fault": {"http-503": 0.1, "batch-lost": 0.5},
}
SINGLE = {
    "latency_spread": 0.1,
    "tier": "tier2",
    "minute_s": 1.5,
    "day_s": 60.0,
    "stall_s": 2.0,
    "seed": 7,
}


def test_every_option_reaches_its_setting(potstill: Run) -> None:
    """`--dry-run` shows each setting as it was given, and never the keys."""
    arguments = [f"{option}={name}={value}" for option, pairs in ALL_OPTIONS.items() for name, value in pairs.items()]
    arguments += [f"--{name.replace('_', '-')}={value}" for name, value in SINGLE.items()]
    result = potstill("emulator", "--dry-run", "--json", "--key=a-secret-key", *arguments)
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)["emulator"]
    expected = {
        **SINGLE,
        **ALL_OPTIONS["--length"],
        **ALL_OPTIONS["--quota"],
        **{f"batch_{name}": value for name, value in ALL_OPTIONS["--batch"].items()},
        "faults": ALL_OPTIONS["--fault"],
    }
    assert {name: shown[name] for name in expected} == expected
    assert "a-secret-key" not in result.stdout


@pytest.mark.parametrize(
    ("argument", "word"),
    [
        ("--batch=hours=3", "pending_s"),
        ("--quota=seed=3", "spend_usd"),
        ("--fault=http-503", "NAME=VALUE"),
        ("--fault=http-999=0.5", "http-503"),
        ("--fault=slow=2", "less than or equal to 1"),
        ("--tier=tier9", "tier1"),
        ("--faq=nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_a_wrong_option_is_2_and_says_what_is_possible(potstill: Run, argument: str, word: str) -> None:
    """A misspelt name, a share above 1 or a missing file ends in 2 with the names that there are."""
    result = potstill("emulator", argument)
    assert result.returncode == 2
    assert word in result.stderr


def test_serves_logs_and_ends(tmp_path: Path) -> None:
    """The address comes first, the log has a line as soon as an answer is out, and SIGTERM ends it with 0."""
    log = tmp_path / "requests.jsonl"
    command = [str(COMMAND), "emulator", "--port", "0", "--json", "--log", str(log), "--key", "right-key"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=dict(os.environ)) as process:
        assert process.stdout is not None
        document = ""
        while not document.rstrip().endswith("}"):
            document += process.stdout.readline()
        url = json.loads(document)["url"]
        body = {"contents": [{"parts": [{"text": "Is 8 GB enough?"}]}]}
        path = f"{url}/v1/models/gemini-3.5-flash-lite:generateContent"
        assert httpx2.post(path, json=body, headers={"x-goog-api-key": "wrong"}).status_code == 400
        reply = httpx2.post(path, json=body, headers={"x-goog-api-key": "right-key"})
        (line,) = [json.loads(text) for text in log.read_text().splitlines()]
        assert line["billed"]["output_tokens"] == reply.json()["usageMetadata"]["candidatesTokenCount"]
        assert "8 GB" not in log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
