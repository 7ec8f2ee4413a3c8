"""`potstill cost` as installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import Run


@pytest.mark.parametrize("command", ["estimate", "report", "compare"])
def test_a_workspace_without_history_is_no_failure_and_stays_empty(command: str, potstill: Run, tmp_path: Path) -> None:
    """Without ledger and traces the command answers in one JSON document, and writes nothing."""
    more = ("--prompts", "faq-train.en.txt") if command == "estimate" else ()
    result = potstill("cost", command, *more, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["command"] == command
    assert not list(tmp_path.iterdir())


def test_a_retired_model_is_priced_as_on_its_last_day(potstill: Run) -> None:
    """The source design's example has its exact price, and the note says that the model is gone."""
    numbers = ("--input-tokens", "500", "--output-tokens", "2000")
    result = potstill("cost", "call", "--model", "gemini-1.5-flash", *numbers)
    assert result.returncode == 0, result.stderr
    assert "0.0006375" in result.stdout
    assert "retired" in result.stdout


def test_an_estimate_above_the_limit_ends_in_4(potstill: Run) -> None:
    """CI can stop on an estimate that is too dear."""
    result = potstill("cost", "estimate", "--prompts", "faq-train.en.txt", "--limit", "0.0001")
    assert result.returncode == 4, result.stderr
