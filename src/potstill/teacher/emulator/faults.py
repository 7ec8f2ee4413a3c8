"""Which fault a request, a line of a batch or a whole batch meets."""

from __future__ import annotations

import random

from potstill.teacher.emulator.settings import EmulatorSettings, Fault

TROUBLESHOOTING = "https://developers.generativeai.google/guide/troubleshooting"

HTTP: dict[str, tuple[int, str, str]] = {
    "http-400": (400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
    "http-403": (403, "PERMISSION_DENIED", "The caller does not have permission"),
    "http-500": (
        500,
        "INTERNAL",
        "An internal error has occurred. Please retry or report in " + TROUBLESHOOTING,
    ),
    "http-503": (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "http-504": (504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
    "bare-429": (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
}
"""Plain errors: status, name, message."""

SHED = {"flex-503": "http-503", "flex-429": "bare-429"}
"""What flex alone refuses when load is high, and the error that says so."""

QUOTA = frozenset({"minute-429", "daily-429", "zero-429", "spend-429"})
"""Refusals with QuotaFailure, whatever the quotas say."""

FINISH = {
    "safety": "SAFETY",
    "recitation": "RECITATION",
    "no-content": "OTHER",
    "empty": "STOP",
    "unknown-finish": "FINISH_REASON_OF_TOMORROW",
}
"""Candidates without text, and their finish reason."""

ANSWER = frozenset({*FINISH, "blocked", "thinking-limit", "repetition"})
"""Faults of an answer with status 200."""

LINE = frozenset({*HTTP, *ANSWER})
"""What a line of a batch can meet."""

JOB = frozenset({"batch-stuck", "batch-failed", "batch-expired"})
"""How a whole batch can end."""


class Faults:
    """Draws faults at their shares, one at most; which ones depends on the seed and the order of the draws."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self._random = random.Random(settings.seed)  # noqa: S311  (a simulation)
        self._spread = settings.latency_spread
        self._requests = _scope(
            settings, frozenset(name for name in settings.faults if "batch" not in name and name not in SHED)
        )
        self._flex = _scope(settings, frozenset(SHED))
        self._lines = _scope(settings, LINE)
        self._jobs = _scope(settings, JOB)
        self._shares = {str(name): share for name, share in settings.faults.items()}

    def of_request(self, service: str = "standard") -> str | None:
        """The fault of one request to a model; flex may be shed where the same request would be served."""
        shed = self._drawn(self._flex) if service == "flex" else None
        return SHED[shed] if shed is not None else self._drawn(self._requests)

    def of_line(self) -> str | None:
        """The fault of one line of a batch."""
        return self._drawn(self._lines)

    def of_job(self) -> str | None:
        """The fault of one batch."""
        return self._drawn(self._jobs)

    def hits(self, name: Fault) -> bool:
        """Whether this one fault strikes now."""
        share = self._shares.get(name, 0.0)
        return share > 0 and self._random.random() < share

    def latency_factor(self) -> float:
        """How much longer than the median an answer takes (log-normal)."""
        return self._random.lognormvariate(0, self._spread) if self._spread else 1.0

    def _drawn(self, shares: tuple[tuple[str, float], ...]) -> str | None:
        if not shares:
            return None
        drawn = self._random.random()
        for name, share in shares:
            if drawn < share:
                return name
            drawn -= share
        return None


def _scope(settings: EmulatorSettings, names: frozenset[str]) -> tuple[tuple[str, float], ...]:
    return tuple((name, share) for name, share in settings.faults.items() if name in names)
