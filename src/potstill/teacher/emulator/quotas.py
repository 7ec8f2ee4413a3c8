"""The emulator's quotas: fixed windows, as the service counts them. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field

from potstill.teacher.emulator.settings import EmulatorSettings

ADVICE_PER_DAY_S = 5.0


@dataclass(frozen=True)
class Exceeded:
    """Which quota said no, its value, and the advice that goes with it."""

    quota_id: str
    value: int
    retry_s: float


@dataclass
class Quotas:
    """Requests and input tokens of the current minute and day."""

    settings: EmulatorSettings
    _window: int = field(default=-1)
    _requests: int = 0
    _tokens: int = 0
    _today: int = 0

    def admit(self, now: float, input_tokens: int) -> Exceeded | None:
        """Count one request, or say which quota it would exceed; a refused request is not counted."""
        limits, minute_s = self.settings, self.settings.minute_s
        window = int(now // minute_s)
        if window != self._window:
            self._window, self._requests, self._tokens = window, 0, 0
        left_s = (window + 1) * minute_s - now
        if limits.rpd is not None and self._today >= limits.rpd:
            return Exceeded("GenerateRequestsPerDayPerProjectPerModel-FreeTier", limits.rpd, ADVICE_PER_DAY_S)
        if limits.rpm is not None and self._requests >= limits.rpm:
            return Exceeded("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", limits.rpm, left_s)
        if limits.tpm is not None and self._tokens + input_tokens > limits.tpm:
            return Exceeded("GenerateContentInputTokensPerModelPerMinute-FreeTier", limits.tpm, left_s)
        self._requests += 1
        self._tokens += input_tokens
        self._today += 1
        return None
