"""A circuit breaker for the teacher: after some outages in a row it is left alone for a while, then tried once. Pure.

Time is an argument. After Nygard, "Release It!" (2007).
"""

from __future__ import annotations

from dataclasses import dataclass

from potstill.errors import PotstillError, QuotaError, TeacherError

OUTAGES = 3
"""Outages in a row that open it."""
REST_S = 30.0
CONTENT_REASONS = ("empty", "unreadable", "http 400", "http 404", "http 413")
"""A teacher that says this is up: the question was at fault."""

CANCELLED = "cancelled"
"""Nobody waited for the answer any more, which says nothing of the teacher."""


@dataclass
class Breaker:
    """Counts outages. `open_until` is a monotonic time; while a trial is under way nobody else is let through."""

    outages: int = 0
    open_until: float = 0.0
    trying: bool = False

    def refuses(self, now: float) -> str | None:
        """Why the teacher is not asked; None lets the caller through, who then must `report`."""
        if self.outages < OUTAGES:
            return None
        if now < self.open_until or self.trying:
            wait = max(0.0, self.open_until - now)
            return f"it failed {self.outages} times in a row and is left alone for {wait:.0f} s"
        self.trying = True
        return None

    def report(self, error: PotstillError | None, now: float) -> None:
        """How the call went: None for an answer."""
        self.trying = False
        if isinstance(error, TeacherError) and error.reason == CANCELLED:
            return
        if error is None or not is_outage(error):
            self.outages = 0
            return
        self.outages += 1
        if self.outages >= OUTAGES:
            self.open_until = now + REST_S


def is_outage(error: PotstillError) -> bool:
    """Whether an error says that the teacher is down, slow or out of quota, rather than that the question was bad."""
    if isinstance(error, QuotaError):
        return True
    return isinstance(error, TeacherError) and error.reason not in CONTENT_REASONS and not error.reason.isupper()
