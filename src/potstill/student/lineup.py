"""The rows of an engine: those that have a place, and those that wait for one, numbered as they came."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Numbered(Protocol):
    """A row that an engine tells by its number."""

    number: int


Member = TypeVar("Member", bound=Numbered)


class Lineup(Generic[Member]):
    """What all engines have in common: rows join, wait in the order in which they came, and get one of the places."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._rows: list[Member] = []
        self._waiting: deque[Member] = deque()
        self._made = 0

    @property
    def running(self) -> int:
        """Rows that have a place."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Rows that wait for one."""
        return len(self._waiting)

    def add(self, row: Member) -> int:
        """Let a row join; gives its number."""
        row.number = self._made
        self._made += 1
        self._waiting.append(row)
        return row.number

    def _drop(self, number: int) -> None:
        """Let a row wait no longer; one that does not wait is no error."""
        self._waiting = deque(row for row in self._waiting if row.number != number)

    def _next(self) -> list[Member]:
        """The rows that have waited longest, as many as there are free places."""
        free = self._slots - len(self._rows)
        return [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
