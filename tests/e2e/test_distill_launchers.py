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
from safetensors.torch import load_file
from tests.conftest import Run
from tests.e2e.test_distill_cli import write_dataset
from tests.tiny import save_tiny

from potstill.workspace import StudentFiles, Workspace

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "potstill"]
ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "potstill",
]  # fmt: skip
COMMAND = [
    "distill", "--base", "base", "--device", "cpu", "--json", "--epochs", "12", "--set", "distill.checkpoint_steps=5",
    "--set", "distill.max_new_tokens=4",
]  # fmt: skip
pytestmark = pytest.mark.slow


def launch(folder: Path, *arguments: str, launcher: list[str] = TORCHRUN) -> subprocess.Popen[str]:
    """Start the command under a launcher; what it prints is one text."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*launcher, *COMMAND, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


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


@pytest.fixture
def base(tmp_path: Path) -> None:
    """A tiny base, in the folder that the commands run in."""
    save_tiny(tmp_path / "base")


@pytest.mark.usefixtures("base")
def test_two_processes_are_one_student(tmp_path: Path, potstill: Run) -> None:
    """One process killed ends the launch; another launcher goes on, and ends in the weights of one process to 1e-4.

    The first process alone says the verdict, also where nothing is left to do, and under `--gate` a student that cannot
    replace the teacher fails the launch: the launcher makes 1 of the process's 8.
    """
    for name in ("one", "two"):
        write_dataset(Workspace(tmp_path / name))
    one, two = (Workspace(tmp_path / name).student("student") for name in ("one", "two"))
    assert kill_one(launch(tmp_path, "-w", "two"), two) == 1
    assert not two.verdict.exists()
    assert potstill(*COMMAND, "-w", "one").returncode == 0
    done, said, _ = ended(launch(tmp_path, "-w", "two", launcher=ACCELERATE))
    assert (done, said["trained"]) == (0, True)
    left, right = (load_file(files.adapter / "adapter_model.safetensors") for files in (one, two))
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-4
    assert max(float(each.abs().max()) for name, each in left.items() if "lora_B" in name) > 1e-2
    done, said, errors = ended(launch(tmp_path, "-w", "two", "--gate"))
    assert (done, said["trained"]) == (1, False)
    assert "exitcode  : 8" in errors
    assert said["verdict"] == json.loads(two.verdict.read_text())


@pytest.mark.usefixtures("base")
def test_each_process_lets_the_student_write(tmp_path: Path) -> None:
    """On-policy distillation in two processes: each writes and scores answers of its own share, and one student is learned."""
    write_dataset(Workspace(tmp_path / "w"))
    soft = ("teacher=base", "on_policy=1", "max_new_tokens=4", "temperature=1")
    sets = [part for text in soft for part in ("--set", f"distill.soft_targets.{text}")]
    done, said, errors = ended(launch(tmp_path, "-w", "w", *sets, "--epochs", "1"))
    assert (done, said["trained"]) == (0, True), errors
    weights = load_file(Workspace(tmp_path / "w").student("student").adapter / "adapter_model.safetensors")
    assert all(bool(each.isfinite().all()) for each in weights.values())
    assert any(float(each.abs().max()) > 0 for name, each in weights.items() if "lora_B" in name)
