"""Why a request is not taken, and what the time without an engine looks like."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

LONGEST_WAIT_S = 30
"""Between two tries of a fresh engine, at most."""


class UnavailableError(Exception):
    """No request is taken now, whoever asks; come again in `retry_s`."""

    def __init__(self, message: str, *, code: str = "unavailable", retry_s: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retry_s = retry_s


class QueueFullError(UnavailableError):
    """As many queries wait as may wait."""

    def __init__(self) -> None:
        super().__init__("too many requests wait", code="queue_full")


class EngineFailedError(Exception):
    """The engine broke while it worked on a request."""


@dataclass(frozen=True)
class Outage:
    """There is no engine: since which fault, how many fresh ones failed too, and when (monotonic) the next is tried."""

    fault: str
    tries: int
    next_try: float

    @classmethod
    def of(cls, error: Exception, tries: int) -> Outage:
        """After a fault a fresh engine is tried at once, then in 1, 2, 4 ... s."""
        wait_s = min(2 ** (tries - 1), LONGEST_WAIT_S) if tries else 0
        return cls(type(error).__name__, tries, time.monotonic() + wait_s)

    @property
    def wait_s(self) -> float:
        """Seconds until the next try."""
        return max(0.0, self.next_try - time.monotonic())

    @property
    def refusal(self) -> UnavailableError:
        """What a request is told: the kind of fault, no more, because its text may hold paths."""
        message = f"the engine failed ({self.fault}), and no fresh one answers yet"
        return UnavailableError(message, code="engine_failed", retry_s=max(1, math.ceil(self.wait_s)))
