"""`potstill distill` on a real tiny base: killed, run again, run once more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import COMMAND, Run
from tests.samples import line_of

from potstill.generate.failures import read_failures
from potstill.records import Sample
from potstill.student.familiar import read_known
from potstill.student.manifest import ADAPTER_FILES
from potstill.workspace import Workspace

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_tiny_base.py"
EPOCHS = 40

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of two layers, pretrained for a few steps."""
    folder = tmp_path_factory.mktemp("base")
    arguments = [sys.executable, str(SCRIPT), "--out", str(folder), "--size", "small", "--steps", "5"]
    subprocess.run(arguments, check=True, capture_output=True, timeout=300)
    return folder


def sample(number: int) -> Sample:
    """One line of a dataset."""
    turns = (("system", "Be brief."), ("user", f"what is {number}?"), ("assistant", f"a number, {number}"))
    return line_of(*turns, id=f"c1:{number}", prompt_id=f"p{number}")


def write_dataset(workspace: Workspace) -> None:
    """Sixteen samples to train on, two to validate, two to test."""
    workspace.dataset.mkdir(parents=True)
    for name, numbers in (("train", range(16)), ("validation", range(16, 18)), ("test", range(18, 20))):
        text = "".join(sample(number).to_line() for number in numbers)
        workspace.split(name).write_text(text, encoding="utf-8")


def arguments(base: Path, workspace: str) -> list[str]:
    """The command of all runs here."""
    sets = ["distill.checkpoint_steps=5", f"distill.epochs={EPOCHS}", "distill.max_new_tokens=4"]
    pairs = [part for text in sets for part in ("--set", text)]
    return ["distill", "--base", str(base), "--device", "cpu", "-w", workspace, "--json", *pairs]


def kill_after_checkpoint(folder: Path, command: list[str], checkpoints: Path) -> None:
    """Start the command and kill it, without a chance to tidy up, as soon as a checkpoint is whole."""
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONWARNINGS": "ignore"}, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not list(checkpoints.glob("checkpoint-*/trainer_state.json")):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_killed_run_resumes_to_the_same_student(tmp_path: Path, base: Path, potstill: Run) -> None:
    """A run killed with SIGKILL goes on at its checkpoint and ends in the weights of a run that nothing disturbed.

    A checkpoint that the kill left half written is passed over.
    Once more, nothing is done; under another margin it is judged anew, and exported, without training.
    """
    for name in ("killed", "whole"):
        write_dataset(Workspace(tmp_path / name))
    files = Workspace(tmp_path / "killed").student("student")
    kill_after_checkpoint(tmp_path, [str(COMMAND), *arguments(base, "killed")], files.checkpoints)
    assert not files.verdict.exists()
    (files.checkpoints / "checkpoint-9999").mkdir()
    for name in ("killed", "whole"):
        done = potstill(*arguments(base, name))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["trained"] is True
    adapters = [Workspace(tmp_path / name).student("student").adapter for name in ("killed", "whole")]
    for part in ADAPTER_FILES:
        assert (adapters[0] / part).read_bytes() == (adapters[1] / part).read_bytes()
    rule = json.loads(files.verdict.read_text("utf-8"))["router"]
    known = read_known(files.questions)
    assert known is not None
    assert (rule["familiar"]["encoder"], rule["familiar"]["questions"]) == (known.encoder, len(known.vectors))
    assert rule["alone"]["familiar"] is None
    assert len(read_failures(str(files.verdict), Workspace(tmp_path / "killed")).held_out) == 4
    again = potstill(*arguments(base, "killed"))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["trained"] is False
    stamp = (files.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    other = potstill(*arguments(base, "killed"), "--set", "distill.margin=0.5", "--export")
    assert other.returncode == 0, other.stderr
    assert json.loads(other.stdout)["verdict"]["margin"] == 0.5
    assert json.loads(other.stdout)["exported"][0]["agreement"]["same_token"] > 0.98
    assert (files.adapter / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_missing_dataset_is_exit_2(base: Path, potstill: Run) -> None:
    """Without a dataset the command ends with code 2 and names `potstill generate`."""
    done = potstill(*arguments(base, "nothing"))
    assert done.returncode == 2
    assert "potstill generate" in done.stderr


def test_gate_is_exit_8(tmp_path: Path, base: Path, potstill: Run) -> None:
    """With `distill.gate` a student that cannot replace the teacher ends in code 8, after the verdict was shown."""
    write_dataset(Workspace(tmp_path / "gated"))
    done = potstill(*arguments(base, "gated"), "--epochs", "1", "--set", "distill.gate=true")
    assert done.returncode == 8, done.stderr
    assert json.loads(done.stdout)["verdict"]["can_replace"] is False
