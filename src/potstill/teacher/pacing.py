"""When may the next request leave? Pure: time is an argument.

Requests and input tokens are paced by the generic cell rate algorithm (ITU-T I.371) without a burst: each admission
moves the cell's next free moment on by its share of a minute. In any window of 60 s no more than the limit leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

PACIFIC = ZoneInfo("America/Los_Angeles")
"""Where the teacher's day begins and ends."""
MINUTE_S = 60.0


@dataclass(frozen=True)
class Wait:
    """How long to wait before asking again, and what for; 0 seconds: admitted."""

    seconds: float
    reason: str

    @property
    def admitted(self) -> bool:
        """Whether the request may leave now."""
        return self.seconds <= 0


@dataclass(frozen=True)
class Limits:
    """Requests a minute, input tokens a minute, requests a day; None: unlimited."""

    rpm: int | None = None
    tpm: int | None = None
    rpd: int | None = None


class Pacer:
    """The state of all limits. `now` is a monotonic time in seconds."""

    def __init__(self, limits: Limits, *, sent_today: int = 0) -> None:
        self._limits = limits
        self._sent_today = sent_today
        self._next_request = float("-inf")
        self._next_tokens = float("-inf")
        self._paused_until = float("-inf")

    def admit(self, now: float, input_tokens: int) -> Wait:
        """Admit one request to all limits, or to none and say how long to wait for the slowest."""
        if self._limits.rpd is not None and self._sent_today >= self._limits.rpd:
            return Wait(float("inf"), "requests per day")
        waits = [
            Wait(self._paused_until - now, "pause that the teacher asked for"),
            Wait(self._next_request - now, "requests per minute"),
            Wait(self._next_tokens - now, "input tokens per minute"),
        ]
        longest = max(waits, key=lambda wait: wait.seconds)
        if not longest.admitted:
            return longest
        if self._limits.rpm is not None:
            self._next_request = now + MINUTE_S / self._limits.rpm
        if self._limits.tpm is not None:
            self._next_tokens = now + MINUTE_S * input_tokens / self._limits.tpm
        self._sent_today += 1
        return Wait(0, "admitted")

    def pause(self, until: float) -> None:
        """Let nothing leave before `until`; a shorter pause never ends a longer one."""
        self._paused_until = max(self._paused_until, until)


def day_start(now: datetime) -> datetime:
    """The last midnight in Pacific time, in UTC."""
    local = now.astimezone(PACIFIC)
    return datetime(local.year, local.month, local.day, tzinfo=PACIFIC).astimezone(UTC)


def next_day(now: datetime) -> datetime:
    """The next midnight in Pacific time, in UTC: when a daily quota is full again."""
    local = now.astimezone(PACIFIC) + timedelta(days=1)
    return datetime(local.year, local.month, local.day, tzinfo=PACIFIC).astimezone(UTC)
