"""What every command shares: one JSON document, quiet and verbose, dry runs, and a pipe that closes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.conftest import COMMAND, Run

COMMANDS = (
    "init", "generate", "distill", "serve-local", "infer", "cost call", "cost estimate", "cost report", "cost compare",
    "cost prices", "doctor", "emulator",
)  # fmt: skip
SHARED = ("--config", "-c", "--set", "--workspace", "-w", "--json", "--quiet", "-q", "--verbose", "-v", "--dry-run")
PLANS = (
    ("init", "shop"),
    ("generate", "--prompts", "faq-train.en.txt"),
    ("serve-local",),
    ("emulator",),
    ("infer", "What is LoRA?"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_shared_options(command: str, potstill: Run) -> None:
    """The help of each command shows the options that all have, and what it does."""
    result = potstill(*command.split(), "--help")
    assert result.returncode == 0
    for option in SHARED:
        assert option in result.stdout, f"{command} has no {option}"


@pytest.mark.parametrize("arguments", PLANS, ids=lambda arguments: arguments[0])
def test_a_dry_run_writes_nothing_and_shows_origins(arguments: tuple[str, ...], potstill: Run, tmp_path: Path) -> None:
    """`--dry-run` needs no key, leaves the folder as it was, and names the origin of each value."""
    result = potstill(*arguments, "--dry-run", "--json", env={"POTSTILL__LANGUAGE": "en"})
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["config"]["language"] == {"value": "en", "origin": "environment POTSTILL__LANGUAGE"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("cost", "prices"), ("doctor",), ("cost", "report")], ids=" ".join)
def test_json_is_one_document_with_its_version(arguments: tuple[str, ...], potstill: Run, tmp_path: Path) -> None:
    """With --json, standard output is one JSON document that names its schema and its command."""
    result = potstill(*arguments, "--json", "-w", tmp_path)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert document["command"]


@pytest.mark.parametrize("arguments", ["cost prices --json", "cost prices", "--help"])
def test_a_reader_that_goes_away_is_no_error(arguments: str, tmp_path: Path) -> None:
    """A reader that closes the pipe before the first byte is written ends the command quietly with 0."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [str(COMMAND), *arguments.split()]
    result = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_flag_that_cannot_be_read_is_named(potstill: Run) -> None:
    """A number that is no YAML either: exit code 2 and the flag's name, no traceback."""
    result = potstill("generate", "--max-cost", "[1", "--dry-run")
    assert result.returncode == 2
    assert "--max-cost" in result.stderr
    assert "Traceback" not in result.stderr


def test_output_has_no_colour_codes_in_a_pipe(potstill: Run) -> None:
    """What goes into a file or a pipe is plain text."""
    result = potstill("doctor")
    assert "\x1b[" not in result.stdout + result.stderr


def test_verbose_says_what_is_used_and_why_it_failed(potstill: Run) -> None:
    """-v names each value that is no default with its origin, and the cause of an error; never a key."""
    env = {"GEMINI_API_KEY": "a-very-secret-key"}
    result = potstill("cost", "report", "-v", "--set", "teacher.rpm=7", env=env)
    assert "teacher.rpm = 7  (--set)" in result.stderr
    assert "key: GEMINI_API_KEY" in result.stderr
    assert "teacher.rpm" not in potstill("cost", "report", "--set", "teacher.rpm=7").stderr
    failed = potstill("generate", "--prompts", "none.jsonl", "-v", "-c", "no-such.yaml", env=env)
    assert failed.returncode == 2
    assert "cause: FileNotFoundError" in failed.stderr
    assert "a-very-secret-key" not in result.stderr + failed.stderr
