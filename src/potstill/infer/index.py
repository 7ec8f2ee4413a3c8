"""Nearest vectors within one scope: one port, and an adapter for memory; those for Qdrant are beside it.

An index holds numbers, scopes and vectors, nothing else, and is rebuilt from the store at any time. Scores are cosine
similarity, 1 for equal directions. A search never crosses a scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.errors import MachineError
from potstill.infer.encoder import Vector
from potstill.infer.store import EntryStore, StoredVector

CHUNK = 256
"""Points sent together."""
FIRST_ROWS = 64
PAGE = 5000
"""Numbers read together."""
LOCKED = ("WouldBlock", "already accessed")
"""What Qdrant Edge and qdrant-client's local mode say when another process has the folder open."""


class IndexBusyError(MachineError):
    """Another process holds the embedded index."""


class BrokenIndexError(MachineError):
    """The embedded index cannot be read; as it is derived, it may be deleted."""


@dataclass(frozen=True)
class Near:
    """An entry's number and the cosine similarity of its question."""

    number: int
    cosine: float


class Index(Protocol):
    """Vectors by scope."""

    def upsert(self, points: Sequence[StoredVector]) -> None:
        """Add vectors, or put them in place of older ones of the same number."""

    def search(self, vector: Vector, scope: str, limit: int) -> list[Near]:
        """The nearest of one scope, nearest first."""

    def delete(self, numbers: Sequence[int]) -> None:
        """Take entries out; unknown numbers are no error."""

    def numbers(self) -> set[int]:
        """All entries that are in."""

    def count(self) -> int:
        """How many those are."""

    def close(self) -> None:
        """Let go of files and connections."""


class MemoryIndex:
    """All vectors in memory, one matrix a scope, compared by numpy: exact, without files, open to any number of processes."""

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}
        self._scopes: dict[int, str] = {}

    def upsert(self, points: Sequence[StoredVector]) -> None:
        """Add or replace vectors."""
        self.delete([point.number for point in points])
        for scope in dict.fromkeys(point.scope for point in points):
            chosen = {point.number: point.vector for point in points if point.scope == scope}
            shelf = self._shelves.setdefault(scope, _Shelf(len(points[0].vector)))
            shelf.add(list(chosen), list(chosen.values()))
            self._scopes |= dict.fromkeys(chosen, scope)

    def search(self, vector: Vector, scope: str, limit: int) -> list[Near]:
        """The nearest of one scope, nearest first."""
        shelf = self._shelves.get(scope)
        return shelf.nearest(vector, limit) if shelf else []

    def delete(self, numbers: Sequence[int]) -> None:
        """Take entries out."""
        for number in numbers:
            if (scope := self._scopes.pop(number, None)) is not None:
                self._shelves[scope].remove(number)

    def numbers(self) -> set[int]:
        """All entries that are in."""
        return set(self._scopes)

    def count(self) -> int:
        """How many those are."""
        return len(self._scopes)

    def close(self) -> None:
        """Nothing to let go of."""


class _Shelf:
    """The unit vectors of one scope in a matrix that doubles as it fills; the last row takes a removed one's place."""

    def __init__(self, dims: int) -> None:
        import numpy as np

        self._np = np
        self._matrix = np.zeros((FIRST_ROWS, dims), np.float32)
        self._numbers: list[int] = []
        self._rows: dict[int, int] = {}

    def add(self, numbers: Sequence[int], vectors: Sequence[Vector]) -> None:
        first, last = len(self._numbers), len(self._numbers) + len(numbers)
        while last > len(self._matrix):
            self._matrix = self._np.concatenate([self._matrix, self._np.zeros_like(self._matrix)])
        self._matrix[first:last] = self._units(vectors)
        self._numbers += numbers
        self._rows |= dict(zip(numbers, range(first, last), strict=True))

    def remove(self, number: int) -> None:
        row, last = self._rows.pop(number), self._numbers.pop()
        if last != number:
            self._matrix[row] = self._matrix[len(self._numbers)]
            self._numbers[row] = last
            self._rows[last] = row

    def nearest(self, vector: Vector, limit: int) -> list[Near]:
        count = len(self._numbers)
        cosines = self._matrix[:count] @ self._units([vector])[0]
        every = self._np.arange(count)
        chosen = self._np.argpartition(-cosines, limit - 1)[:limit] if count > limit else every
        ranked = sorted(chosen.tolist(), key=lambda row: (-cosines[row], self._numbers[row]))
        return [Near(self._numbers[row], float(cosines[row])) for row in ranked]

    def _units(self, vectors: Sequence[Vector]) -> Any:
        made = self._np.array(vectors, self._np.float32)
        lengths = self._np.linalg.norm(made, axis=1, keepdims=True)
        return made / self._np.where(lengths > 0, lengths, 1)


def catch_up(store: EntryStore, index: Index, encoder: str, since: int = 0) -> None:
    """Make an index hold exactly the vectors that the store has of an encoder.

    From a `seq` on by what has changed since; from 0, or from one too long ago, by comparing everything.
    """
    if since and since + 1 >= store.first_change():
        came, gone = store.changes(encoder, since)
    else:
        wanted, present = store.numbers(encoder), index.numbers()
        came, gone = sorted(wanted - present), sorted(present - wanted)
    for chunk in _chunks(gone):
        index.delete(chunk)
    for chunk in _chunks(came):
        if points := store.vectors(encoder, chunk):
            index.upsert(points)


def unopened(folder: Path, error: Exception) -> MachineError:
    """What an embedded engine's refusal to open a folder means: it is busy, or broken."""
    if any(sign in str(error) for sign in LOCKED):
        return IndexBusyError(f"{folder} is held by another process")
    message = f"the index in {folder} cannot be opened: {error}"
    return BrokenIndexError(message, hint="delete that folder: it is rebuilt from the cache's entries")


def _chunks(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
