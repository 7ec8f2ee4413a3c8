"""The request log: what was asked, how it ended, and what it was billed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from potstill.records import Record, Usage
from potstill.teacher.emulator.replies import Asked


class Logged(Record):
    """One request: what it was, how it ended, and the tokens that it was billed for.

    `digest` names the content asked, whatever the service; `job` is the batch that a line belongs to, `key` the line's
    own name there.
    """

    at: datetime
    model: str
    method: str
    digest: str
    status: int
    fault: str | None = None
    finish_reason: str | None = None
    service: str = "standard"
    job: str | None = None
    key: str | None = None
    billed: Usage = Usage()


class Journal:
    """All requests since the start, in memory and, with a path, in a file of JSON lines."""

    def __init__(self, path: str | None) -> None:
        self.entries: list[Logged] = []
        self._path = path
        self._file: IO[str] | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the file open, and written line by line, for as long as the server runs."""
        if self._path is None:
            yield
            return
        with Path(self._path).open("a", encoding="utf-8", buffering=1) as file:
            self._file = file
            try:
                yield
            finally:
                self._file = None

    def write(self, asked: Asked, method: str, status: int, **more: str | Usage | None) -> None:
        """Write one entry; `more` are the optional fields of `Logged`."""
        values = {"service": asked.service, **{name: value for name, value in more.items() if value is not None}}
        self.add(
            Logged(
                at=datetime.now(UTC),
                model=asked.model,
                method=method,
                digest=asked.digest,
                status=status,
                **values,
            )
        )

    def add(self, entry: Logged) -> None:
        """Write an entry that is not about a text."""
        self.entries.append(entry)
        if self._file is not None:
            self._file.write(entry.to_line())
