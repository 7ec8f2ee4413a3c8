"""When may the next request leave? Pure: time is an argument, in seconds since the epoch, so that processes agree on it.

Requests are spaced by the generic cell rate algorithm (ITU-T I.371), which evens them out; input tokens and dollars are
counted in sliding windows, whose sum never passes the limit; requests a day are counted to midnight Pacific. Admission
is all or nothing: a request that one limit holds back takes nothing from the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

PACIFIC = ZoneInfo("America/Los_Angeles")
"""Where the teacher's day begins and ends."""
MINUTE_S = 60.0
CATCH_UP_S = 0.3
"""How late a request may be and still keep its place, so that a slow timer loses no rate."""
ARRIVAL_S = 0.3
"""How much two requests' ways to the server may differ without a minute there holding one too many."""
TOKEN_BUCKET_S = 1
SPEND_WINDOW_S = 600.0
SPEND_BUCKET_S = 10
LEARNED_S = 86_400.0
"""How long a limit that the teacher named is believed; after it the project may be in another tier."""


@dataclass(frozen=True)
class Limits:
    """Requests a minute, input tokens a minute, requests a day, picodollars in ten minutes; None: unlimited."""

    rpm: int | None = None
    tpm: int | None = None
    rpd: int | None = None
    pico_per_10min: int | None = None


@dataclass(frozen=True)
class Need:
    """What one request takes: input tokens (estimated) and picodollars (at worst)."""

    input_tokens: int
    worst_pico: int = 0


@dataclass(frozen=True)
class Pass:
    """Admitted: it may leave at `at`, which is now or a moment from now."""

    at: float


@dataclass(frozen=True)
class Wait:
    """Held back: ask again in `seconds`; `reason` names the limit."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class DayOver:
    """The day's requests are spent; they come back at `retry_at`."""

    retry_at: datetime
    limit: int | None


class Learned(BaseModel):
    """A limit that the teacher named, and when."""

    model_config = ConfigDict(frozen=True)

    value: int
    at: float


class PaceState(BaseModel):
    """What has been taken from the limits of one project and model; all processes on one ledger share it."""

    next_request_at: float = 0.0
    paused_until: float = 0.0
    day: str = ""
    sent_today: int = 0
    day_spent: bool = False
    tokens: dict[int, int] = {}
    spend: dict[int, int] = {}
    learned: dict[str, Learned] = {}


def admit(state: PaceState, limits: Limits, now: float, need: Need, *, horizon_s: float = 0.0) -> Pass | Wait | DayOver:
    """Admit one request to all limits, changing `state`, or to none and say what it waits for.

    A request whose turn comes within `horizon_s` is admitted ahead of time.
    """
    limits = effective(limits, state, now)
    if (over := _day_over(state, limits, now)) is not None:
        return over
    interval_s = 0.0 if limits.rpm is None else (MINUTE_S + CATCH_UP_S + ARRIVAL_S) / limits.rpm
    # A clock that was set back must not hold requests for longer than the limits themselves do.
    turn = min(state.next_request_at, now + interval_s + horizon_s + CATCH_UP_S) - CATCH_UP_S
    waits = [
        Wait(state.paused_until - now, "the pause that the teacher asked for"),
        Wait(turn - now - horizon_s, "requests per minute"),
        Wait(_token_wait(state, limits, now, need), "input tokens per minute"),
        Wait(_spend_wait(state, limits, now, need), "dollars in ten minutes"),
    ]
    longest = max(waits, key=lambda wait: wait.seconds)
    if longest.seconds > 0:
        return longest
    start = max(now, turn)
    _take(state, limits, start, need)
    if limits.rpm is not None:
        state.next_request_at = max(start, turn + CATCH_UP_S) + interval_s
    return Pass(start)


def settle(state: PaceState, limits: Limits, start: float, need: Need, taken: Need) -> None:
    """Replace what a request was counted with at `start` by what it took."""
    if limits.tpm is not None:
        _add(state.tokens, start, TOKEN_BUCKET_S, taken.input_tokens - need.input_tokens)
    if limits.pico_per_10min is not None:
        _add(state.spend, start, SPEND_BUCKET_S, taken.worst_pico - need.worst_pico)


def pause(state: PaceState, until: float) -> None:
    """Let nothing leave before `until`; a shorter pause never ends a longer one."""
    state.paused_until = max(state.paused_until, until)


def learn(state: PaceState, limits: dict[str, int], now: float) -> None:
    """Believe the limits that the teacher named (`rpm`, `tpm`, `rpd`)."""
    state.learned |= {name: Learned(value=value, at=now) for name, value in limits.items()}


def end_day(state: PaceState, now: float) -> None:
    """The teacher said that the day's requests are spent, whatever was counted here."""
    state.day, state.day_spent = pacific_day(now), True


def effective(limits: Limits, state: PaceState, now: float) -> Limits:
    """The configured limits, or lower ones that the teacher named not long ago."""

    def lower(configured: int | None, name: str) -> int | None:
        learned = state.learned.get(name)
        if learned is None or not 0 <= now - learned.at < LEARNED_S:
            return configured
        return learned.value if configured is None else min(configured, learned.value)

    return Limits(lower(limits.rpm, "rpm"), lower(limits.tpm, "tpm"), lower(limits.rpd, "rpd"), limits.pico_per_10min)


def pacific_day(now: float) -> str:
    """The day in Pacific time, e.g. `2026-11-24`."""
    return datetime.fromtimestamp(now, PACIFIC).date().isoformat()


def next_day(now: datetime) -> datetime:
    """The next midnight in Pacific time, in UTC: when a daily quota is full again."""
    local = now.astimezone(PACIFIC) + timedelta(days=1)
    return datetime(local.year, local.month, local.day, tzinfo=PACIFIC).astimezone(UTC)


def _day_over(state: PaceState, limits: Limits, now: float) -> DayOver | None:
    today = pacific_day(now)
    if state.day != today:
        state.day, state.sent_today, state.day_spent = today, 0, False
    if state.day_spent or (limits.rpd is not None and state.sent_today >= limits.rpd):
        return DayOver(next_day(datetime.fromtimestamp(now, UTC)), limits.rpd)
    return None


def _take(state: PaceState, limits: Limits, start: float, need: Need) -> None:
    state.sent_today += 1
    if limits.tpm is not None:
        _add(state.tokens, start, TOKEN_BUCKET_S, need.input_tokens)
        _forget(state.tokens, start, TOKEN_BUCKET_S, MINUTE_S + ARRIVAL_S)
    if limits.pico_per_10min is not None:
        _add(state.spend, start, SPEND_BUCKET_S, need.worst_pico)
        _forget(state.spend, start, SPEND_BUCKET_S, SPEND_WINDOW_S)


def _token_wait(state: PaceState, limits: Limits, now: float, need: Need) -> float:
    if limits.tpm is None:
        return 0.0
    return _window_wait(state.tokens, TOKEN_BUCKET_S, MINUTE_S + ARRIVAL_S, now, limits.tpm - need.input_tokens)


def _spend_wait(state: PaceState, limits: Limits, now: float, need: Need) -> float:
    if limits.pico_per_10min is None:
        return 0.0
    left = limits.pico_per_10min - need.worst_pico
    return _window_wait(state.spend, SPEND_BUCKET_S, SPEND_WINDOW_S, now, left)


def _window_wait(buckets: dict[int, int], width: int, window_s: float, now: float, room: int) -> float:
    """Seconds until the window holds no more than `room`; one that could never fit leaves when the window is empty."""
    current = math.floor(now / width)
    live = {bucket: amount for bucket, amount in buckets.items() if (bucket + 1) * width + window_s > now}
    used = sum(live.values())
    for bucket in sorted(live):
        if used <= max(room, 0) or bucket > current + window_s / width:
            return 0.0
        used -= live[bucket]
        if used <= max(room, 0):
            return (bucket + 1) * width + window_s - now
    return 0.0


def _add(buckets: dict[int, int], at: float, width: int, amount: int) -> None:
    bucket = math.floor(at / width)
    buckets[bucket] = max(0, buckets.get(bucket, 0) + amount)


def _forget(buckets: dict[int, int], now: float, width: int, window_s: float) -> None:
    for bucket in [bucket for bucket in buckets if (bucket + 1) * width + window_s <= now]:
        del buckets[bucket]
