"""What happens on a bug: exit code 1, a traceback for the report, no secret in it; a missing package or a full disk is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import COMMAND, Run

BUG = """
import sys
from potstill.cli import app

@app.app.command()
def broken() -> None:
    raise RuntimeError("boom with the key sk-very-secret")

sys.argv = ["potstill", "broken"]
app.main()
"""


def test_a_bug_ends_in_1_without_the_key() -> None:
    """An unexpected error shows its traceback and ends in 1; the key is blanked even where the error carries it."""
    env = {**os.environ, "GEMINI_API_KEY": "sk-very-secret"}
    result = subprocess.run([sys.executable, "-c", BUG], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "RuntimeError: boom" in result.stderr
    assert "[redacted]" in result.stderr
    assert "sk-very-secret" not in result.stdout + result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_ends_in_7(tmp_path: Path) -> None:
    """What cannot be written is the machine's fault: no traceback."""
    with Path("/dev/full").open("w") as full:
        command = [str(COMMAND), "cost", "prices"]
        result = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 7
    assert result.stderr.startswith("potstill: No space left on device")
    assert "Traceback" not in result.stderr


FULL = """
import resource
import sys
import torch
from safetensors.torch import save_file
from potstill.cli import app

@app.app.command("write")
def write() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    {call}

sys.argv = ["potstill", "write"]
app.main()
"""
WEIGHTS = ("save_file({'a': torch.zeros(100_000)}, 'full')", "torch.save({'a': torch.zeros(100_000)}, 'full')")


@pytest.mark.parametrize("call", WEIGHTS)
def test_weights_without_room_end_in_7(tmp_path: Path, call: str) -> None:
    """The writers of safetensors and torch have errors of their own where files may grow no more: they are no bugs of ours either."""
    command = [sys.executable, "-c", FULL.format(call=call)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 7, result.stderr
    assert result.stderr.startswith("potstill: weights could not be written")
    assert "Traceback" not in result.stderr


def test_a_file_in_a_folders_place_ends_in_7(tmp_path: Path) -> None:
    """A workspace in which a file stands where a folder belongs is no bug."""
    (tmp_path / "students").touch()
    code = BUG.replace('raise RuntimeError("boom with the key sk-very-secret")', 'open("students/student/x")')
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 7, result.stderr
    assert result.stderr.startswith("potstill: students/student/x: Not a directory")


def test_a_misused_command_line_is_a_document_too(potstill: Run) -> None:
    """With --json a wrong option is told as JSON on standard output as well; one before the command gets advice."""
    result = potstill("generate", "--plann", "--json")
    assert result.returncode == json.loads(result.stdout)["exit_code"] == 2
    early = potstill("-c", "potstill.yaml", "generate")
    assert early.returncode == 2
    assert "behind the command" in early.stderr


WITHOUT_THE_EXTRA = """
import sys
for package in ("torch", "transformers", "peft", "fastapi", "starlette", "uvicorn", "onnxruntime", "sklearn"):
    sys.modules[package] = None  # what Python does for a package that is not there: ModuleNotFoundError
from potstill.cli import app
app.main()
"""


@pytest.mark.parametrize(
    "arguments",
    [["distill"], ["distill", "--dry-run"], ["serve-local"], ["serve-local", "--engine", "vllm"]],
    ids=" ".join,
)
def test_a_command_whose_extra_is_missing_says_so(arguments: list[str], tmp_path: Path) -> None:
    """Where only the core is installed, the commands of the extra `local` end in 7 and name the extra."""
    command = [sys.executable, "-c", WITHOUT_THE_EXTRA, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 7, result.stderr
    assert "needs the package" in result.stderr
    assert "pip install 'potstill[local]'" in result.stderr
