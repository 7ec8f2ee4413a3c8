"""How many requests may be in flight at once. Pure: time is an argument.

Additive increase, multiplicative decrease (Chiu and Jain, 1989): only for overload without advice, a 429 without
details or a 503, where the teacher is short of capacity and no quota says how much less to send.
"""

from __future__ import annotations

DECREASE = 0.7


class Throttle:
    """The limit on requests in flight: from 1 up to the configured ceiling, where it starts."""

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._limit = float(ceiling)
        self._lowered_at = float("-inf")

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    def succeeded(self) -> None:
        """An answer came: one more in flight for every round of as many answers as are in flight."""
        self._limit = min(float(self._ceiling), self._limit + 1 / self._limit)

    def overloaded(self, started: float, now: float) -> None:
        """A request that left at `started` met an overload. One that left before the last decrease says nothing new."""
        if started >= self._lowered_at:
            self._limit = max(1.0, self._limit * DECREASE)
            self._lowered_at = now
