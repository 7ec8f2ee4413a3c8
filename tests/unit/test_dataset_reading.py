"""Reading a dataset: errors by file and line, and what a line may hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.samples import line_of

from potstill.distill.data import read_data, read_samples
from potstill.errors import InputError
from potstill.records import Message, Sample
from potstill.workspace import Workspace


def line(answer: str = "yes", question: str = "q", system: str = "be brief") -> str:
    """One line of a dataset file."""
    return line_of(("system", system), ("user", question), ("assistant", answer)).to_line()


def write(workspace: Workspace, **splits: str) -> None:
    """Write a dataset; a split that is not given is empty."""
    workspace.dataset.mkdir(parents=True)
    for name in ("train", "validation", "test"):
        workspace.split(name).write_text(splits.get(name, ""), encoding="utf-8")


def test_bad_line_is_named(tmp_path: Path) -> None:
    """A broken line is reported with its file and its number."""
    path = tmp_path / "train.jsonl"
    path.write_text(line() + '{"id": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.jsonl:2: "):
        read_samples(path)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_unicode_line_separators_are_text(tmp_path: Path, separator: str) -> None:
    """A line separator of Unicode inside an answer does not end the line of the file."""
    path = tmp_path / "train.jsonl"
    path.write_text(line(f"one{separator}two"), encoding="utf-8")
    assert [row.messages[-1].content for row in read_samples(path)] == [f"one{separator}two"]


def test_what_an_editor_leaves_is_read(tmp_path: Path) -> None:
    """A byte order mark, line ends of Windows and empty lines are no samples and no errors; line numbers count them."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(("\ufeff" + line("one") + "\n" + line("two") + "\n").replace("\n", "\r\n").encode())
    assert [row.messages[-1].content for row in read_samples(path)] == ["one", "two"]
    path.write_text(line() + "\n" + "{}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.jsonl:3: "):
        read_samples(path)


def test_missing_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    """Without a dataset the error's hint names `potstill generate`."""
    with pytest.raises(InputError) as caught:
        read_data(Workspace(tmp_path), 0.85)
    assert "potstill generate" in (caught.value.hint or "")


def test_empty_training_split_is_refused(tmp_path: Path) -> None:
    """There must be something to train on."""
    workspace = Workspace(tmp_path)
    write(workspace, test=line())
    with pytest.raises(InputError, match="no samples to train on"):
        read_data(workspace, 0.85)


def test_held_out_falls_back_to_validation(tmp_path: Path) -> None:
    """The verdict is made on the validation split where the test split is empty; without both it is refused."""
    workspace = Workspace(tmp_path)
    write(workspace, train=line(), validation=line("held", "another"))
    found = read_data(workspace, 0.85)
    assert [sample.messages[-1].content for sample in found.held_out] == ["held"]
    assert [(role.name, role.system) for role in found.roles] == [("expert", "be brief")]
    workspace.split("validation").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="no held-out samples"):
        read_data(workspace, 0.85)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (("system", "user"), "last turn"),
        (("user", "user", "assistant"), "must go"),
        (("assistant",), "must go"),
        (("user", "system", "user", "assistant"), "must go"),
    ],
)
def test_turns_out_of_order_are_named(tmp_path: Path, turns: tuple[str, ...], said: str) -> None:
    """A chat whose turns are out of order is refused with file and line, before a template trips over it."""
    row = Sample.model_validate_json(line())
    broken = row.model_copy(update={"messages": tuple(Message(role=role, content="x") for role in turns)})
    path = tmp_path / "train.jsonl"
    path.write_text(line() + broken.to_line(), encoding="utf-8")
    with pytest.raises(InputError, match=rf"train\.jsonl:2: messages: .*{said}"):
        read_samples(path)


def test_empty_turn_is_named(tmp_path: Path) -> None:
    """An empty answer teaches nothing but to stop, and is refused by its place."""
    path = tmp_path / "train.jsonl"
    path.write_text(line(" "), encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.jsonl:1: messages: turn 2 \(assistant\) is empty"):
        read_samples(path)


def test_leaks_and_duplicates_are_counted(tmp_path: Path) -> None:
    """A held-out question that stands in the training data is left out of the verdict; a repeated sample is counted."""
    workspace = Workspace(tmp_path)
    asked = "How much memory does a model need?"
    train = line(question=asked) + line(question="how much memory does a model need") + line(question="And heat?")
    held = (
        line(question="How much memory do models need?") + line(question=asked) + line(question="Who cools the card?")
    )
    write(workspace, train=train, test=held)
    found = read_data(workspace, 0.85)
    assert [leak.near.lower().strip("?") for leak in found.leaks] == ["how much memory does a model need"]
    assert len(found.held_out) == 2
    assert found.duplicates == 1


def test_nothing_fair_to_judge_by_is_refused(tmp_path: Path) -> None:
    """Where every held-out question was trained on, there is no verdict to be had."""
    workspace = Workspace(tmp_path)
    write(workspace, train=line(), test=line("other"))
    with pytest.raises(InputError, match="every held-out question"):
        read_data(workspace, 0.85)


def test_second_system_prompt_of_a_role_is_seen(tmp_path: Path) -> None:
    """Only one system prompt of a role can be served, so a second one is reported."""
    workspace = Workspace(tmp_path)
    write(workspace, train=line() + line(system="be long", question="z"), test=line(question="other"))
    assert read_data(workspace, 0.85).other_systems == ("expert",)
