"""What waits to be decoded: numbered as it comes, taken in that order, dropped by number."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Numbered(Protocol):
    """A row that an engine tells by its number."""

    number: int


Waiting = TypeVar("Waiting", bound=Numbered)


class Lineup(Generic[Waiting]):
    """Rows that wait for a place in an engine."""

    def __init__(self) -> None:
        self._rows: deque[Waiting] = deque()
        self._made = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._rows)

    def join(self, row: Waiting) -> int:
        """Let a row wait; gives its number."""
        row.number = self._made
        self._made += 1
        self._rows.append(row)
        return row.number

    def drop(self, number: int) -> None:
        """Let a row wait no longer; one that is not here is no error."""
        self._rows = deque(row for row in self._rows if row.number != number)

    def take(self, count: int) -> list[Waiting]:
        """The rows that have waited longest, at most so many."""
        return [self._rows.popleft() for _ in range(min(count, len(self._rows)))]
