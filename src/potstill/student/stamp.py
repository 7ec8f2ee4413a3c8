"""Hashes of large files, remembered beside what the file system says of them: a file is read again only when it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from potstill.files import file_sha, write_atomic
from potstill.records import Record

SETTLED_NS = 2_000_000_000
"""How old a change must be for its hash to be kept: within one tick of the clock a file can change again unseen."""


class Seen(Record):
    """A file as it was when it was hashed. Its time of change, unlike the one of modification, nobody can set."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    sha: str


class Stamp(Record):
    """What is remembered, by path below the stamp's own folder."""

    files: Mapping[str, Seen]


def remembered_shas(files: Sequence[Path], stamp: Path, now_ns: int) -> list[str]:
    """The SHA-256 of files below the folder of `stamp`, 64 hex digits each; raises OSError where one cannot be read.

    A stamp that is lost, torn or cannot be written costs the reading, nothing else.
    """
    names = [file.relative_to(stamp.parent).as_posix() for file in files]
    before = _read(stamp)
    after = {name: _look(file, before.get(name)) for name, file in zip(names, files, strict=True)}
    settled = {name: seen for name, seen in after.items() if now_ns - seen.changed_ns > SETTLED_NS}
    if not settled.items() <= before.items():
        with suppress(OSError):
            write_atomic(stamp, Stamp(files=settled).model_dump_json())
    return [after[name].sha for name in names]


def _look(file: Path, before: Seen | None) -> Seen:
    state = file.stat()
    known = {
        "size": state.st_size,
        "modified_ns": state.st_mtime_ns,
        "changed_ns": state.st_ctime_ns,
        "inode": state.st_ino,
    }
    if before is not None and before.model_dump(exclude={"sha"}) == known:
        return before
    return Seen(**known, sha=file_sha(file))


def _read(stamp: Path) -> Mapping[str, Seen]:
    try:
        return Stamp.model_validate_json(stamp.read_bytes()).files
    except (OSError, ValidationError):
        return {}
