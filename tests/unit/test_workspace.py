"""Names of files: none is a path, each is written whole, each is read with a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import InputError, MachineError, UsageError
from potstill.files import read_text, write_atomic
from potstill.workspace import Workspace, checked_name, shipped


@given(st.text(max_size=80))
def test_a_checked_name_is_one_plain_file_name(name: str) -> None:
    """Whatever passes is one component of a path, not hidden, and stays in its folder."""
    try:
        checked = checked_name(name, "student")
    except UsageError:
        return
    assert Path(checked).name == checked
    assert not checked.startswith(".")
    assert (Path("students") / checked).resolve().parent == Path("students").resolve()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "a\nb", "名", "x" * 65, "a b"])
def test_paths_are_refused_as_names(name: str) -> None:
    """A name that could lead elsewhere is a usage error, for students and for adapters."""
    with pytest.raises(UsageError):
        Workspace(Path("w")).student(name)
    with pytest.raises(UsageError):
        Workspace(Path("w")).student("fine").role_adapter(name)


def test_the_layout_is_the_contracts(tmp_path: Path) -> None:
    """Files stand where the design says."""
    workspace = Workspace(tmp_path)
    student = workspace.student("demo")
    found = {
        workspace.ledger, workspace.split("train"), workspace.rejected, workspace.dataset_card,
        workspace.dataset_manifest, student.adapter, student.role_adapter("r"), student.verdict, student.report,
        student.loss_plot, student.card, student.manifest, workspace.calibration, workspace.traces,
    }  # fmt: skip
    assert {str(path.relative_to(tmp_path)) for path in found} == {
        "ledger.sqlite3", "dataset/train.jsonl", "dataset/rejected.jsonl", "dataset/README.md", "dataset/manifest.json",
        "students/demo/adapter", "students/demo/adapters/r", "students/demo/verdict.json", "students/demo/report.html",
        "students/demo/loss.png", "students/demo/README.md", "students/demo/manifest.json", "cache/calibration.json",
        "traces",
    }  # fmt: skip


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """A write that fails leaves the old file and nothing beside it."""
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "舊")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "舊"
    write_atomic(path, b"new")
    assert [item.name for item in path.parent.iterdir()] == ["file.txt"]
    assert path.read_bytes() == b"new"


def test_a_workspace_that_cannot_be_made_is_a_machine_error(tmp_path: Path) -> None:
    """A file where the folder should be is named, with exit code 7."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(MachineError, match="taken"):
        Workspace(tmp_path / "taken" / "w").create()


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    """A missing file, a folder and a file that is not UTF-8 are input errors with the path."""
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    for name in ("none", "latin", "."):
        with pytest.raises(InputError, match=r"prompt file|not UTF-8"):
            read_text(tmp_path / name, "prompt file")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """A file that an editor began with a byte order mark reads as without it."""
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfhello")
    assert read_text(tmp_path / "bom", "file") == "hello"


def test_shipped_files_are_found() -> None:
    """A checkout finds its prompts and configs."""
    assert (shipped("prompts") / "roles").is_dir()
    assert list(shipped("configs").glob("*.yaml"))
