"""The emulator's quotas: fixed windows a model, as the service counts them. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from potstill.teacher.emulator.settings import EmulatorSettings, Tier
from potstill.teacher.pacing import PACIFIC

ADVICE_PER_DAY_S = 5.0
"""A daily refusal carries a short RetryInfo all the same; it is of no use."""
METRIC = "generativelanguage.googleapis.com/"
SPEND_QUOTA = "SpendPerTenMinutesPerProject"
"""The real name of this quota is not known; a client must not take an unknown name for a per-minute one."""


@dataclass(frozen=True)
class Exceeded:
    """Which quota said no, its metric and value, and the advice that goes with it."""

    quota_id: str
    metric: str
    value: str
    retry_s: float


@dataclass
class Window:
    """What was counted since a window began."""

    number: int = -1
    amount: Decimal | int = 0

    def at(self, number: int) -> Decimal | int:
        """The count in window `number`; a new window begins at zero."""
        if number != self.number:
            self.number, self.amount = number, 0
        return self.amount


@dataclass
class _Counts:
    minute: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    day: Window = field(default_factory=Window)


class Quotas:
    """Requests and input tokens of the current minute and day a model, dollars of the current ten minutes."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self._settings = settings
        self._models: dict[str, _Counts] = {}
        self._spent = Window()

    def admit(self, model: str, now: float, input_tokens: int) -> Exceeded | None:
        """Count one request, or say which quota it would exceed; a refused request is not counted.

        `now` is seconds since 1970. A daily quota wins over one by the minute.
        """
        limits, counts = self._settings, self._models.setdefault(model, _Counts())
        minute = int(now // limits.minute_s)
        requests, tokens = counts.minute.at(minute), counts.tokens.at(minute)
        today = counts.day.at(self._day(now)) if limits.rpd is not None else 0
        left_s = (minute + 1) * limits.minute_s - now
        if limits.rpd is not None and today >= limits.rpd:
            return exceeded("day", limits.tier, limits.rpd, ADVICE_PER_DAY_S)
        if limits.rpm is not None and requests >= limits.rpm:
            return exceeded("minute", limits.tier, limits.rpm, left_s)
        if limits.tpm is not None and tokens + input_tokens > limits.tpm:
            return exceeded("tokens", limits.tier, limits.tpm, left_s)
        if limits.spend_usd is not None and self._spent.at(int(now // self._spend_s)) >= limits.spend_usd:
            return self.spend_exceeded(now)
        counts.minute.amount += 1
        counts.tokens.amount += input_tokens
        counts.day.amount += 1
        return None

    def spend(self, now: float, usd: Decimal) -> None:
        """Count dollars that an answer was billed."""
        self._spent.at(int(now // self._spend_s))
        self._spent.amount += usd

    def spend_exceeded(self, now: float) -> Exceeded:
        """The refusal for the spend of ten minutes."""
        left_s = self._spend_s - now % self._spend_s
        value = format(self._settings.spend_usd or Decimal(10), "f")
        return Exceeded(SPEND_QUOTA, f"{METRIC}spend_per_ten_minutes", value, left_s)

    @property
    def _spend_s(self) -> float:
        return 10 * self._settings.minute_s

    def _day(self, now: float) -> int:
        if self._settings.day_s is not None:
            return int(now // self._settings.day_s)
        return datetime.fromtimestamp(now, UTC).astimezone(PACIFIC).toordinal()


def exceeded(kind: str, tier: Tier, value: int, retry_s: float) -> Exceeded:
    """The refusal of a quota of requests a `minute` or `day`, or of input `tokens` a minute, as a tier names it."""
    free = tier == "free"
    if kind == "tokens":
        if free:
            quota_id, metric = "GenerateContentInputTokensPerModelPerMinute-FreeTier", "free_tier_input_token_count"
        else:
            suffix = "" if tier == "tier1" else f"-PaidTier{tier[-1]}"
            quota_id = f"GenerateContentPaidTierInputTokensPerModelPerMinute{suffix}"
            metric = f"paid_tier_{'' if tier == 'tier1' else tier[-1] + '_'}input_token_count"
    else:
        span = {"minute": "Minute", "day": "Day"}[kind]
        quota_id = f"GenerateRequestsPer{span}PerProjectPerModel{'-FreeTier' if free else ''}"
        metric = "free_tier_requests" if free else "paid_tier_requests"
    return Exceeded(quota_id, f"{METRIC}generate_content_{metric}", str(value), retry_s)
