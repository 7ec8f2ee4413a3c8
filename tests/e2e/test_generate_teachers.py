"""`potstill generate` with another teacher than Gemini through google-genai."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import Run

from potstill.teacher.emulator import EmulatorSettings, running

MODEL = "gemini-2.5-flash-lite"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Six questions in the folder where the command runs."""
    path = tmp_path / "questions.txt"
    path.write_text("".join(f"How much memory does model number {number} need?\n" for number in range(6)))
    return path


@pytest.mark.usefixtures("questions")
def test_an_openai_compatible_server_fills_the_same_ledger(potstill: Run) -> None:
    """Answers are priced, kept and not paid for again; the key is in no output; Gemini's variables do not interfere."""
    with running(EmulatorSettings(latency_s=0, keys=("an-openai-key",))) as emulator:
        env = {
            "OPENAI_API_KEY": "an-openai-key",
            "OPENAI_BASE_URL": f"{emulator.url}/v1beta/openai",
            "GEMINI_API_KEY": "of-another-service",
            "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:9",
        }
        flags = ("--prompts", "questions.txt", "--model", MODEL, "--set", "teacher.provider=openai", "--json")
        first = potstill("generate", *flags, env=env)
        assert first.returncode == 0, first.stderr
        again = potstill("generate", *flags, env=env)
        refused = potstill("generate", *flags, "-w", "other", env={**env, "OPENAI_API_KEY": "a-wrong-secret"})
        log = [entry for entry in emulator.log() if entry.status == 200]
    assert json.loads(first.stdout)["paid"] == 6
    assert float(json.loads(first.stdout)["spent_usd"]) > 0
    assert json.loads(again.stdout)["paid"] == 0
    assert {(entry.method, entry.service) for entry in log} == {("chat.completions", "standard")}
    assert len(log) == 6
    assert refused.returncode == 3
    for secret in ("an-openai-key", "a-wrong-secret", "of-another-service"):
        assert secret not in first.stdout + first.stderr + refused.stdout + refused.stderr


@pytest.mark.usefixtures("questions")
@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (("teacher.sdk=google-generativeai",), "thinking of gemini-3.5-flash-lite"),
        (("teacher.sdk=google-generativeai", f"teacher.model={MODEL}", "teacher.service=batch"), "batch"),
        (("teacher.provider=openai", "teacher.service=flex"), "flex"),
        (("teacher.provider=openai", "teacher.model=my-own"), "no price for model 'my-own'"),
    ],
)
def test_what_a_client_cannot_do_is_2_before_any_key(potstill: Run, settings: tuple[str, ...], word: str) -> None:
    """The plan refuses it already, names the setting and says what to use instead."""
    flags = [part for setting in settings for part in ("--set", setting)]
    result = potstill("generate", "--prompts", "questions.txt", "--dry-run", *flags)
    assert result.returncode == 2, result.stdout
    assert word in result.stderr
    assert "hint:" in result.stderr
