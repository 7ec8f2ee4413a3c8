"""The pacing core: no window ever holds more than its limit, and little of what a limit allows is lost."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.teacher.pacing import (
    MINUTE_S,
    SPEND_WINDOW_S,
    DayOver,
    Limits,
    Need,
    PaceState,
    Pass,
    Wait,
    admit,
    effective,
    end_day,
    learn,
    next_day,
    pause,
    settle,
)
from potstill.teacher.throttle import Throttle

NOON = datetime(2026, 11, 24, 20, 0, tzinfo=UTC).timestamp()
"""Noon in Pacific time."""


def departures(limits: Limits, needs: list[Need], late_s: list[float], horizon_s: float = 0.0) -> list[float]:
    """When each request leaves, where every wait ends `late_s` too late, as timers do."""
    state, now, times = PaceState(), NOON, []
    for index, need in enumerate(needs):
        while not isinstance(found := admit(state, limits, now, need, horizon_s=horizon_s), Pass):
            assert isinstance(found, Wait)
            assert found.seconds > 0
            now += found.seconds + late_s[index % len(late_s)]
        times.append(found.at)
        now = max(now, found.at) if horizon_s == 0 else now
    return times


def busiest(times: list[float], amounts: list[int], window_s: float) -> int:
    """The largest sum in any window."""
    return max(
        sum(amount for other, amount in zip(times, amounts, strict=True) if time <= other < time + window_s)
        for time in times
    )


LATE = st.lists(st.floats(0, 0.2), min_size=1, max_size=5)


@given(st.integers(1, 60), st.integers(1, 130), LATE, st.sampled_from([0.0, 0.05]))
def test_no_minute_holds_more_requests_than_the_limit(rpm: int, count: int, late: list[float], horizon: float) -> None:
    """Whatever the timers do, no 60 seconds see more than rpm departures."""
    times = departures(Limits(rpm=rpm), [Need(1)] * count, late, horizon)
    assert busiest(times, [1] * count, MINUTE_S) <= rpm


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), LATE)
def test_no_minute_holds_more_tokens_than_the_limit(sizes: list[int], late: list[float]) -> None:
    """Requests of mixed sizes never add up to more than tpm in 60 seconds."""
    times = departures(Limits(tpm=1000), [Need(size) for size in sizes], late)
    assert busiest(times, sizes, MINUTE_S) <= 1000


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), LATE)
def test_no_ten_minutes_hold_more_dollars_than_the_limit(costs: list[int], late: list[float]) -> None:
    """What was reserved in any ten minutes stays within the limit."""
    times = departures(Limits(pico_per_10min=1000), [Need(1, cost) for cost in costs], late)
    assert busiest(times, costs, SPEND_WINDOW_S) <= 1000


@pytest.mark.parametrize("rpm", [30, 150, 600, 6000])
def test_late_timers_lose_less_than_two_percent(rpm: int) -> None:
    """With timers that are always some milliseconds late, at least 98 % of the quota is used."""
    times = departures(Limits(rpm=rpm), [Need(1)] * (2 * rpm), [0.004, 0.02, 0.001])
    assert (len(times) - 1) / (times[-1] - times[0]) * MINUTE_S >= 0.98 * rpm


def test_admission_is_all_or_nothing() -> None:
    """A request that one limit holds back has taken nothing from the others."""
    state, limits = PaceState(), Limits(rpm=60, tpm=100, rpd=10)
    assert isinstance(admit(state, limits, NOON, Need(90)), Pass)
    before = state.model_copy(deep=True)
    held = admit(state, limits, NOON + 30, Need(20))
    assert isinstance(held, Wait)
    assert held.reason == "input tokens per minute"
    assert state == before


def test_a_request_larger_than_the_limit_leaves_when_the_window_is_empty() -> None:
    """It can never fit, so it goes alone instead of waiting for ever."""
    times = departures(Limits(tpm=100), [Need(50), Need(500), Need(50)], [0.0])
    assert times[1] - times[0] >= MINUTE_S
    assert times[2] - times[1] >= MINUTE_S


def test_a_settled_request_gives_back_what_it_did_not_take() -> None:
    """An estimate that was too high frees its room as soon as the true figure is known."""
    state, limits = PaceState(), Limits(tpm=1000, pico_per_10min=1000)
    passed = admit(state, limits, NOON, Need(900, 900))
    assert isinstance(passed, Pass)
    assert isinstance(admit(state, limits, NOON + 1, Need(900, 900)), Wait)
    settle(state, limits, passed.at, Need(900, 900), Need(10, 10))
    assert isinstance(admit(state, limits, NOON + 1, Need(900, 900)), Pass)


def test_the_day_ends_at_midnight_pacific() -> None:
    """A spent day says when the next begins, also across the change to winter time; then requests pass again."""
    state, limits = PaceState(), Limits(rpd=1)
    assert isinstance(admit(state, limits, NOON, Need(1)), Pass)
    over = admit(state, limits, NOON + 60, Need(1))
    assert isinstance(over, DayOver)
    assert over.retry_at == datetime(2026, 11, 25, 8, 0, tzinfo=UTC)
    assert isinstance(admit(state, limits, over.retry_at.timestamp() + 1, Need(1)), Pass)
    assert next_day(datetime(2026, 11, 1, 7, 30, tzinfo=UTC)) == datetime(2026, 11, 2, 8, 0, tzinfo=UTC)


def test_a_day_that_the_teacher_ended_is_over_without_a_limit_of_ours() -> None:
    """After a per-day 429 nothing leaves until midnight, whatever was counted here."""
    state = PaceState()
    end_day(state, NOON)
    assert isinstance(admit(state, Limits(), NOON + 3600, Need(1)), DayOver)
    assert isinstance(admit(state, Limits(), NOON + 86_400, Need(1)), Pass)


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    """Advice of 5 seconds after advice of 30 leaves the 30."""
    state = PaceState()
    pause(state, NOON + 30)
    pause(state, NOON + 5)
    held = admit(state, Limits(), NOON, Need(1))
    assert held == Wait(30, "the pause that the teacher asked for")


def test_a_learned_limit_lowers_a_configured_one_for_a_day() -> None:
    """The teacher's figure counts where it is lower, never where it is higher, and is forgotten after a day."""
    state = PaceState()
    learn(state, {"rpm": 5, "tpm": 10_000}, NOON)
    assert effective(Limits(rpm=150, tpm=100), state, NOON + 60) == Limits(rpm=5, tpm=100)
    assert effective(Limits(rpm=150), state, NOON + 60) == Limits(rpm=5, tpm=10_000)
    assert effective(Limits(rpm=150), state, NOON + 86_401) == Limits(rpm=150)


@given(st.floats(1, 1e6))
def test_a_clock_that_was_set_back_does_not_stop_the_run(back_s: float) -> None:
    """The next request waits no longer than the limits' own spans, however far the clock jumped."""
    state, limits = PaceState(), Limits(rpm=60, tpm=1000)
    assert isinstance(admit(state, limits, NOON, Need(1000)), Pass)
    held = admit(state, limits, NOON - back_s, Need(1000))
    assert isinstance(held, Pass) or (isinstance(held, Wait) and held.seconds <= 2 * MINUTE_S + 2)


def test_the_state_survives_the_ledger() -> None:
    """What is written as JSON and read again is the same state."""
    state, limits = PaceState(), Limits(rpm=60, tpm=1000, rpd=9, pico_per_10min=10**12)
    admit(state, limits, NOON, Need(10, 5))
    learn(state, {"rpd": 20}, NOON)
    assert PaceState.model_validate_json(state.model_dump_json()) == state


def test_overload_lowers_concurrency_once_a_round_trip_and_success_raises_it() -> None:
    """Requests that left before the last decrease do not decrease again; a round of answers adds one."""
    throttle = Throttle(10)
    throttle.overloaded(started=0, now=1)
    throttle.overloaded(started=0.5, now=1.1)
    assert throttle.limit == 7
    throttle.overloaded(started=2, now=3)
    assert throttle.limit == 4
    for _ in range(5):
        throttle.succeeded()
    assert throttle.limit == 5
    for _ in range(1000):
        throttle.succeeded()
    assert throttle.limit == 10
    for moment in range(50):
        throttle.overloaded(started=10 + moment, now=10 + moment)
    assert throttle.limit == 1
