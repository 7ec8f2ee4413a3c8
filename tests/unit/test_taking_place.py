"""A student that takes another's place: the old one answers until the end, and no kill leaves new adapters beside old words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.samples import line_of
from tests.tiny import save_tiny
from tests.unit.test_dataset_reading import write
from tests.unit.test_earlier_student import nothing

from potstill.config import Config, with_values
from potstill.distill.progress import Progress
from potstill.distill.run import distill
from potstill.errors import InputError
from potstill.infer.panel import read_verdict
from potstill.student.manifest import fingerprint_on_disk
from potstill.workspace import StudentFiles, Workspace

ROLES = ("one", "other")


class Killed(BaseException):
    """The end of a process, as far as it can be had within one."""


Look = Callable[[], None]
looks: list[Look] = []


def told(event: str, arguments: tuple[object, ...]) -> None:
    """Let the test look before each change of what a student consists of."""
    if looks and event in {"os.remove", "os.rename", "shutil.rmtree"}:
        names = {Path(str(each)).name for each in arguments[:2]}
        if names & {"manifest.json", "verdict.json", "adapter", "adapters"}:
            look = looks.pop()  # what it reads is no change
            look()
            looks.append(look)


@contextmanager
def before_each_change(look: Look) -> Iterator[None]:
    """Within it, `look` is called before each change; what it raises stands for a kill there."""
    if told not in HOOKED:
        sys.addaudithook(told)
        HOOKED.append(told)
    looks.append(look)
    try:
        yield
    finally:
        looks.clear()


HOOKED: list[object] = []
"""An audit hook stays for the process's life."""


def line(role: str, number: int) -> str:
    """One line of a dataset."""
    turns = (("system", f"Be {role}."), ("user", f"what is {number}?"), ("assistant", f"{role} number, {number}"))
    return line_of(*turns, role=role, id=f"c1:{role}{number}", prompt_id=f"p{number}").to_line()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Two roles of six samples each, one held out of each, an adapter a role, a tiny base."""
    save_tiny(tmp_path / "base")
    lines = {part: "".join(line(role, each) for role in ROLES for each in numbers)
             for part, numbers in (("train", range(6)), ("test", [7]))}  # fmt: skip
    write(Workspace(tmp_path / "w"), **lines)
    student = {"base": str(tmp_path / "base"), "device": "cpu"}
    training = {"epochs": 5.0, "max_new_tokens": 4, "adapters": "per-role"}
    return with_values(Config(workspace=str(tmp_path / "w")), student=student, distill=training)


def run(config: Config, seed: int, follow: Callable[[Progress], None] = nothing) -> None:
    """Distil with this seed."""
    distill(with_values(config, distill={"seed": seed}), Workspace(Path(config.workspace)), nothing, follow)


def files_of(config: Config) -> StudentFiles:
    """The student's files."""
    return Workspace(Path(config.workspace)).student(config.distill.name)


def read(files: StudentFiles) -> tuple[str, str | None] | None:
    """What a reader finds: the student, and its verdict as it is told by its date; None: no student."""
    try:
        student = fingerprint_on_disk(files)
    except InputError:
        return None
    verdict = read_verdict(files)
    return student, None if verdict is None else verdict.created_at.isoformat()


def test_the_old_student_answers_until_the_new_one_is_whole(config: Config) -> None:
    """During the training of every role the old pair stands; then there is no student, then the new one, then its verdict."""
    files = files_of(config)
    run(config, 0)
    old = read(files)
    assert old is not None
    seen: list[tuple[str, str | None] | None] = []

    def look() -> None:
        seen.append(read(files))

    training: list[tuple[str, str | None] | None] = []
    with before_each_change(look):
        run(config, 1, follow=lambda _: training.append(read(files)))
    new = read(files)
    assert new is not None
    assert new[0] != old[0]
    assert new[1] not in {old[1], None}
    assert set(training) == {old}
    assert list(dict.fromkeys(seen)) == [old, None, (new[0], None)]
    assert not files.checkpoints.exists()


def test_a_kill_at_any_step_of_the_change(config: Config) -> None:
    """Killed before each single change, the same command goes on each time, and ends in the student that nothing disturbed."""
    run(config, 0)
    files = files_of(config)
    old = read(files)
    run(with_values(config, distill={"name": "undisturbed"}), 1)
    steps, left = 0, 0

    def look() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    while True:
        left = steps
        try:
            with before_each_change(look):
                run(config, 1)
        except Killed:
            steps += 1
        else:
            break
        found = read(files)
        assert found in {old, None} or found[1] is None
    assert steps >= 7  # one for each file and folder that is removed, moved or written
    undisturbed = Workspace(Path(config.workspace)).student("undisturbed")
    for role in ROLES:
        weights = [each.role_adapter(role) / "adapter_model.safetensors" for each in (files, undisturbed)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert read_verdict(files) is not None
