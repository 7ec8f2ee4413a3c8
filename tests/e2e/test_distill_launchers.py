"""`torchrun` and `accelerate launch -m potstill distill` with two CPU processes over gloo: killed, gone on with, gated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.e2e.test_distill_cli import write_dataset
from tests.e2e.test_distill_processes import config_of, difference, make
from tests.tiny import save_tiny

from potstill.workspace import StudentFiles, Workspace

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "potstill"]
ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "potstill",
]  # fmt: skip
pytestmark = pytest.mark.slow


def launch(folder: Path, launcher: list[str], *arguments: str) -> subprocess.Popen[str]:
    """Start the command in the workspace `two` under a launcher; what it prints is one text."""
    settings = config_of(folder).model_dump_json(include={"student": {"base", "device"}, "distill": SETTINGS})
    (folder / "potstill.yaml").write_text(settings, "utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*launcher, "distill", "-w", "two", "--json", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


SETTINGS = {"epochs", "checkpoint_steps", "max_new_tokens"}


def kill_one(run: subprocess.Popen[str], files: StudentFiles) -> int:
    """Kill one of the two processes once a checkpoint is whole; gives what the launcher ends with."""
    while run.poll() is None and not list(files.checkpoints.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.02)
    psutil.Process(run.pid).children()[-1].kill()
    run.communicate(timeout=120)
    return run.returncode


def ended(run: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """What a launch ended with, the one document that it printed, and its errors."""
    said, errors = run.communicate(timeout=300)
    assert said, errors
    return run.returncode, json.loads(said), errors


def test_a_killed_launch_goes_on_under_another_launcher(tmp_path: Path) -> None:
    """One process killed ends the launch; another launcher goes on, and ends in the weights of one process to 1e-4.

    The first process alone says the verdict, and under `--gate` a student that cannot replace the teacher fails the
    launch: the launcher makes 1 of the process's 8.
    """
    save_tiny(tmp_path / "base")
    for name in ("one", "two"):
        write_dataset(Workspace(tmp_path / name))
    one, two = (Workspace(tmp_path / name).student("student") for name in ("one", "two"))
    assert kill_one(launch(tmp_path, TORCHRUN), two) == 1
    assert not two.verdict.exists()
    assert make(tmp_path, "one") is True
    done, said, errors = ended(launch(tmp_path, ACCELERATE, "--gate"))
    assert (done, said["trained"]) == (1, True)
    assert "exitcode  : 8" in errors
    assert said["verdict"] == json.loads(two.verdict.read_text())
    assert difference(one.adapter, two.adapter) < 1e-4
