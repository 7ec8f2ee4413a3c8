"""Reading and writing files: errors that name file and line, and files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import InputError, MachineError, UsageError


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file or nothing: a temporary file beside it, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode("utf-8") if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` for a library to write to; it takes the place of `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class LineFile:
    """A file that is written line by line beside its place, and put there whole by `publish`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        self._temporary = Path(name)
        self._file = os.fdopen(descriptor, "wb")
        self._digest = hashlib.sha256()
        self.lines = 0

    def write(self, line: str) -> None:
        """Add one line, newline included."""
        data = line.encode("utf-8")
        self._file.write(data)
        self._digest.update(data)
        self.lines += 1

    @property
    def sha256(self) -> str:
        """Hash of what was written, 64 hex digits."""
        return self._digest.hexdigest()

    def publish(self) -> None:
        """Flush to disk and take the file's place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)

    def discard(self) -> None:
        """Leave what stood there before; nothing to do after `publish`."""
        with suppress(OSError):  # a full disk, which whoever wrote has heard of
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class FileLock:
    """One process at a time: SQLite's own lock on an empty file, which works wherever the ledger does and ends with its process."""

    def __init__(self, path: Path) -> None:
        """Open the file; raises MachineError where it cannot be made."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = sqlite3.connect(path, timeout=0, isolation_level=None)
        except (OSError, sqlite3.OperationalError) as error:
            message = f"cannot create {path}: {error}"
            raise MachineError(message) from error

    def taken(self) -> bool:
        """Take it; False where another process has it."""
        try:
            self._lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        self._lock.close()


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 file; raises InputError naming `what` and the path."""
    with _reading(path, what):
        return path.read_text(encoding="utf-8-sig")


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file; raises InputError naming `what`, the path and the line."""
    try:
        data = yaml.safe_load(read_text(path, what))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        message = f"{path}{where}: {getattr(error, 'problem', None) or 'not valid YAML'}"
        raise InputError(message) from error
    check_text(data, str(path))
    return data


def parse_json(text: str) -> Any:
    """A JSON value; raises json.JSONDecodeError, also for what Python's reader raises something else for.

    A model that was asked for JSON can run in a loop: within a number, or opening one bracket after another.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
        raise json.JSONDecodeError(problem, text, 0) from error


def check_text(data: Any, origin: str) -> None:
    """Raise InputError, naming `origin`, for half a surrogate pair: YAML and JSON can say one, no file can hold it."""
    for text in _texts(data):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"{origin}: \\u{ord(text[error.start]):04x} is half a character"
            raise InputError(message, hint="write the character itself, in UTF-8") from error


def _texts(data: Any) -> Iterator[str]:
    """All texts in some lists and mappings. By YAML's references one of them can stand in many places, also in itself."""
    waiting, seen = [data], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list | dict) and id(item) not in seen:
            seen.add(id(item))
            waiting += [*item, *item.values()] if isinstance(item, dict) else item


def check_target(path: Path, source: Path | None = None) -> None:
    """Raise UsageError where a file is to be written and a folder stands, or the file that it is made from."""
    if path.is_dir():
        message = f"{path} is a folder, not a file to write to"
        raise UsageError(message)
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        message = f"{path} would be written over: it is what is read"
        raise UsageError(message, hint="choose another file for the output")


def file_sha(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(path: Path, what: str) -> Iterator[str]:
    """The lines of a UTF-8 file, one at a time; raises InputError naming `what`, the path and the line."""
    with _reading(path, what), path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8").removeprefix("\ufeff" if number == 1 else "")
            except UnicodeDecodeError as error:
                message = f"{path}:{number}: not UTF-8"
                raise InputError(message, hint="save the file as UTF-8") from error


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turn what goes wrong with a file into an InputError."""
    try:
        yield
    except FileNotFoundError as error:
        message = f"{what} not found: {path}"
        raise InputError(message) from error
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 (byte {error.start})"
        raise InputError(message, hint="save the file as UTF-8") from error
    except OSError as error:
        message = f"cannot read {what} {path}: {error.strerror}"
        raise InputError(message) from error
