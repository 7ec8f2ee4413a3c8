"""One training by two CPU processes over gloo: what each holds and does, and that the student is that of one process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.test_distill_cli import write_dataset
from tests.processes import together
from tests.tiny import save_tiny
from tests.unit.test_distill_training import ignore, job

from potstill.config import Config
from potstill.distill.run import distill
from potstill.distill.sharding import WISH, load_sharded, wants_sharding
from potstill.distill.train import train
from potstill.errors import MachineError
from potstill.workspace import StudentFiles, Workspace

pytestmark = pytest.mark.slow
SHARDED = {WISH: "true"}


def config_of(folder: Path, **settings: Any) -> Config:
    """A student of sixteen samples in five epochs, on the base in `folder`."""
    return Config.model_validate(
        {
            "student": {"base": str(folder / "base"), "device": "cpu"},
            "distill": {"epochs": 5, "checkpoint_steps": 5, "max_new_tokens": 4, **settings},
        }
    )


def make(folder: Path, name: str, **settings: Any) -> bool | None:
    """Distil in the workspace of this name; whether anything had to be done, None where another process tells."""
    done = distill(config_of(folder, **settings), Workspace(folder / name), lambda _: None, lambda _: None)
    return None if done is None else done.fresh


def held(folder: Path) -> tuple[int, int, bool]:
    """Weights of the layers that this process holds of a sharded base, those of all processes, and whether the wish stays."""
    from accelerate import PartialState
    from torch.distributed.tensor import DTensor

    config = config_of(folder)
    wants_sharding(config)
    PartialState(cpu=True)
    shares = [each for each in load_sharded(config.student).parameters() if isinstance(each, DTensor)]
    return sum(each.to_local().numel() for each in shares), sum(each.numel() for each in shares), WISH in os.environ


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, and the student that one process made of it, in the workspace `one`."""
    made = tmp_path_factory.mktemp("processes")
    save_tiny(made / "base")
    for name in ("one", "two", "sharded", "on-policy"):
        write_dataset(Workspace(made / name))
    assert make(made, "one") is True
    return made


def student(folder: Path, name: str) -> StudentFiles:
    """The student's files in a workspace."""
    return Workspace(folder / name).student("student")


def difference(one: Path, other: Path) -> float:
    """How far one adapter is from another, which learned something."""
    left, right = (load_file(adapter / "adapter_model.safetensors") for adapter in (one, other))
    assert max(float(each.abs().max()) for name, each in left.items() if "lora_B" in name) > 1e-2
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_two_processes_are_one_student(folder: Path) -> None:
    """Two processes end in the weights of one, to 1e-4; the first one tells, also where nothing is left to do."""
    assert together(make, folder, "two") == {0: True, 1: None}
    assert difference(*(student(folder, name).adapter for name in ("one", "two"))) < 1e-4
    assert together(make, folder, "two") == {0: False, 1: None}


def test_each_process_lets_the_student_write(folder: Path) -> None:
    """On-policy distillation in two processes: each writes and scores answers of its own share, and one student is learned."""
    soft = {"teacher": str(folder / "base"), "on_policy": 1.0, "max_new_tokens": 4, "temperature": 1.0}
    work = (folder, "on-policy")
    assert together(make_on_policy, *work, soft) == {0: True, 1: None}
    weights = load_file(student(folder, "on-policy").adapter / "adapter_model.safetensors")
    assert all(bool(each.isfinite().all()) for each in weights.values())
    assert any(float(each.abs().max()) > 0 for name, each in weights.items() if "lora_B" in name)


def make_on_policy(folder: Path, name: str, soft: dict[str, Any]) -> bool | None:
    """`make` with soft targets."""
    return make(folder, name, epochs=1, soft_targets=soft)


def test_a_sharded_base_lies_in_halves(folder: Path) -> None:
    """Under FSDP each of two processes holds half of every layer; nothing else reads the launcher's wish afterwards."""
    found = together(held, folder, **SHARDED)
    (one, whole, wish), (other, _, _) = found[0], found[1]
    assert one == other == whole / 2 > 0
    assert not wish


def test_a_sharded_base_makes_the_same_student(folder: Path) -> None:
    """Over a sharded base, with micro-batches of which the processes have unequally many, weights and verdict are the same."""
    assert together(make_split, folder, "sharded", **SHARDED) == {0: True, 1: None}
    assert difference(*(student(folder, name).adapter for name in ("one", "sharded"))) < 1e-4
    one, other = (student(folder, name).evaluation.read_text("utf-8") for name in ("one", "sharded"))
    assert one == other


def make_split(folder: Path, name: str) -> bool | None:
    """`make` with a budget of about two samples a micro-batch."""
    return make(folder, name, tokens_per_batch=120)


def train_in(folder: Path, name: str, room: int) -> None:
    """Train over a sharded base where the second process has room for so many tokens at once."""

    def admit(tokens: int) -> None:
        if tokens > room and os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError

    config = config_of(folder)
    wants_sharding(config)
    lora = {"r": 4, "target_modules": "all-linear"}
    train(config.student, replace(job(folder / name, lora=lora), admit=admit, load=load_sharded), ignore)


def test_memory_that_runs_out_over_a_sharded_base(folder: Path) -> None:
    """The process that ran out ends the launch with what to do; the same command then goes on, to the same student.

    An epoch whose last step is too small for both processes is learned once, as by one process.
    """
    ends = [together(train_in, folder, "short", 40, **SHARDED) for _ in range(2)]
    first, last = (end.get(1) for end in ends)
    assert isinstance(first, MachineError)
    assert "goes on" in (first.hint or "")
    assert last is None
    lora = {"r": 4, "target_modules": "all-linear"}
    train(config_of(folder).student, job(folder / "roomy", lora=lora), ignore)
    assert difference(folder / "roomy" / "adapter", folder / "short" / "adapter") < 1e-4
