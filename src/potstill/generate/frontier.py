"""How far a plan is while its cells finish in any order. Pure.

Of a million cells only those in flight and those that failed are held: everything before `first_open` is done but for
the holes, everything after it has not been given out.
"""

from __future__ import annotations

from potstill.ledger import PlanProgress


class Frontier:
    """Follows the cells of one run, which are given out in ascending order: first the holes, then the rest."""

    def __init__(self, start: PlanProgress) -> None:
        self._cells = start.cells
        self._next = start.first_open
        self._holes = set(start.holes)
        self._in_flight: set[int] = set()

    def given_out(self, position: int) -> None:
        """A cell is being asked for."""
        if position >= self._next:
            self._next = position + 1
            self._in_flight.add(position)

    def answered(self, position: int) -> None:
        """A cell has its answer."""
        self._in_flight.discard(position)
        self._holes.discard(position)

    def failed(self, position: int) -> None:
        """A cell has none, and the next run is to ask for it again."""
        self._in_flight.discard(position)
        self._holes.add(position)

    def progress(self) -> PlanProgress:
        """Where the next run can begin. A failed cell beyond that point is met again anyway."""
        first_open = min(self._in_flight, default=self._next)
        return PlanProgress(self._cells, first_open, tuple(sorted(hole for hole in self._holes if hole < first_open)))
