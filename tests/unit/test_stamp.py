"""The hashes of large files, which are remembered until a file changes."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from potstill.files import file_sha, write_atomic
from potstill.student.stamp import SETTLED_NS, Stamp, remembered_shas

MARK = "0" * 64
"""A hash that no file here has: it is given out only by a stamp that is believed."""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights."""
    path = tmp_path / "adapter" / "weights"
    write_atomic(path, "first")
    return path


def later() -> int:
    """A time at which everything that was written so far has settled, in nanoseconds."""
    return time.time_ns() + 2 * SETTLED_NS


def sha(file: Path, now_ns: int) -> str:
    """The hash of one file by the stamp beside its folder."""
    (found,) = remembered_shas([file], file.parents[1] / ".hashes.json", now_ns)
    return found


def mark(stamp: Path) -> None:
    """Put the mark in place of every hash in a stamp."""
    known = Stamp.model_validate_json(stamp.read_bytes())
    marked = {name: seen.model_copy(update={"sha": MARK}) for name, seen in known.files.items()}
    write_atomic(stamp, Stamp(files=marked).model_dump_json())


def rewritten(file: Path) -> None:
    """Other bytes of the same number, in place, with the old time of modification put back."""
    state = file.stat()
    file.write_text("other", "utf-8")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def replaced(file: Path) -> None:
    """Another file of the same size and time of modification, moved into the place."""
    state = file.stat()
    other = file.with_name("beside")
    other.write_text("other", "utf-8")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(file)


def test_unchanged_file_is_hashed_once(weights: Path) -> None:
    """The second time the stamp is believed, and nothing is read; a longer file is read again."""
    assert sha(weights, later()) == file_sha(weights)
    mark(weights.parents[1] / ".hashes.json")
    assert sha(weights, later()) == MARK
    weights.write_text("longer than before", "utf-8")
    assert sha(weights, later()) == file_sha(weights)


@pytest.mark.parametrize("change", [rewritten, replaced])
def test_tampered_file_has_another_hash(weights: Path, change: Callable[[Path], None]) -> None:
    """Other weights of the same size are seen, also where the time of modification was put back."""
    before = sha(weights, later())
    change(weights)
    assert sha(weights, later()) == file_sha(weights) != before


def test_fresh_file_is_not_remembered(weights: Path) -> None:
    """What changed a moment ago may change again within one tick of the clock, so its hash is not kept."""
    assert sha(weights, time.time_ns()) == file_sha(weights)
    assert not (weights.parents[1] / ".hashes.json").exists()


@pytest.mark.parametrize("torn", ["", "{", '{"files": {"adapter/weights": 1}}'])
def test_torn_stamp_is_renewed(weights: Path, torn: str) -> None:
    """A stamp that cannot be read costs the reading of the file, and is written anew."""
    stamp = weights.parents[1] / ".hashes.json"
    write_atomic(stamp, torn)
    assert sha(weights, later()) == file_sha(weights)
    mark(stamp)
    assert sha(weights, later()) == MARK


def test_stamp_that_cannot_be_written(weights: Path) -> None:
    """Where the stamp has no place, the hashes are right all the same."""
    (weights.parents[1] / ".hashes.json").mkdir()
    assert sha(weights, later()) == file_sha(weights)
