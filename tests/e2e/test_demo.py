"""The demo script, as a newcomer runs it, with a student that is quick to make."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.conftest import COMMAND

ROOT = Path(__file__).parents[2]


def test_the_whole_pipeline_runs(tmp_path: Path) -> None:
    """scripts/demo.sh goes through all five commands, pays once, and leaves a dataset, a student and traces."""
    env = {**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}
    run = tmp_path / "run"
    result = subprocess.run(
        ["bash", "scripts/demo.sh", "--quick", str(run)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for step in ("1. cost estimate", "2. generate", "3. distill", "4. serve-local", "5. infer", "6. cost"):
        assert f"== {step}" in result.stdout
    assert "paid for 0 answers" in result.stdout
    verdict = json.loads((run / "students" / "demo" / "verdict.json").read_text())
    assert verdict["student_score"]["n"] > 0
    assert (run / "students" / "demo" / "loss.png").read_bytes().startswith(b"\x89PNG")
    traces = [json.loads(line) for path in (run / "traces").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert [trace["route"] for trace in traces[1:3]] == ["exact", "semantic"]
    billed = [json.loads(line) for line in (run / "emulator.jsonl").read_text().splitlines()]
    digests = [entry["digest"] for entry in billed]
    assert len(digests) == len(set(digests)), "a request was paid for twice"
    assert "Traceback" not in result.stderr


def test_a_teacher_that_does_not_start_ends_the_demo(tmp_path: Path) -> None:
    """Without the emulator's address nothing is asked: it would go to the real Gemini."""
    asked = tmp_path / "asked"
    program = tmp_path / "potstill"
    program.write_text(f'#!/bin/sh\necho "$1" >>"{asked}"\nexit 1\n')
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "scripts/demo.sh", "--quick", str(tmp_path / "run")],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "no answer from the server" in result.stderr
    assert asked.read_text() == "emulator\n"
