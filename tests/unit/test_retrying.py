"""What to do after a failed attempt, by the bodies that the Gemini API sends."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import KeyRefusedError, QuotaError, UsageError
from potstill.records import Usage
from potstill.teacher.retrying import (
    Failure,
    GiveUp,
    Keep,
    Retry,
    Stop,
    after_failure,
    after_reply,
    learned_limits,
    retry_delay_s,
)
from potstill.teacher.scripted import reply_error, reply_quota
from potstill.teacher.transport import Received
from potstill.teacher.wire import Reply

NOW = datetime(2026, 11, 24, 20, 0, tzinfo=UTC)
PER_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
PER_DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
TOKENS = "GenerateContentPaidTierInputTokensPerModelPerMinute-PaidTier2"


LOST = Received(None, lost="timeout")


def decide(received: Received, attempt: int = 1) -> Retry | GiveUp | Stop:
    """The decision after one failed attempt of at most five."""
    failure = Failure(received.lost or "http", received.status, received.body)
    return after_failure(failure, attempt, 5, NOW, jitter=0.5)


def test_the_advice_in_the_body_is_taken() -> None:
    """A per-minute 429 pauses everything for as long as its RetryInfo says, and a little more."""
    decided = decide(reply_quota((PER_MINUTE, 5), retry_s=34.07))
    assert isinstance(decided, Retry)
    assert decided.pause_all
    assert not decided.overload
    assert 34.07 <= decided.after_s <= 34.07 * 1.1 + 0.1


def test_a_daily_quota_wins_over_its_short_advice() -> None:
    """PerDay with RetryInfo of 5 s ends the run and names the next midnight in Pacific time."""
    decided = decide(reply_quota((PER_DAY, 20), retry_s=5))
    assert isinstance(decided, Stop)
    assert isinstance(decided.error, QuotaError)
    assert decided.error.retry_at == datetime(2026, 11, 25, 8, 0, tzinfo=UTC)


def test_a_daily_quota_wins_among_several_violations() -> None:
    """Whatever the order of the violations, a spent day stops the run."""
    for violations in ([(PER_MINUTE, 5), (PER_DAY, 20)], [(PER_DAY, 20), (PER_MINUTE, 5)]):
        assert isinstance(decide(reply_quota(*violations, retry_s=3)), Stop)


def test_limit_zero_is_fatal_at_once() -> None:
    """A model that the tier does not have is never asked again, RetryInfo or not."""
    decided = decide(reply_quota((PER_MINUTE, 0), retry_s=12))
    assert isinstance(decided, Stop)
    assert isinstance(decided.error, UsageError)


def test_advice_of_more_than_minutes_is_a_spent_quota() -> None:
    """An advised wait of an hour ends the run with the time to come back."""
    decided = decide(reply_quota(("SomethingNewPerProject", 7), retry_s=3600))
    assert isinstance(decided, Stop)
    assert isinstance(decided.error, QuotaError)
    assert decided.error.retry_at == datetime(2026, 11, 24, 21, 0, tzinfo=UTC)


def test_per_minute_without_advice_waits_a_minute() -> None:
    """The quota's own span, where the body names none."""
    decided = decide(reply_quota((PER_MINUTE, 5)))
    assert isinstance(decided, Retry)
    assert 60 <= decided.after_s <= 67


@pytest.mark.parametrize(("status", "overload"), [(429, True), (503, True), (500, False), (504, False), (None, False)])
def test_a_lack_of_capacity_backs_off_and_ends_after_the_attempts(status: int | None, *, overload: bool) -> None:
    """Without advice: exponential backoff for this request alone; 429 and 503 ask for fewer in flight."""
    received = reply_error(status, "UNAVAILABLE", "The model is overloaded.") if status else LOST
    waits = []
    for attempt in range(1, 5):
        decided = decide(received, attempt)
        assert isinstance(decided, Retry)
        assert not decided.pause_all
        assert decided.overload is overload
        waits.append(decided.after_s)
    assert waits == [1, 2, 4, 8]
    assert isinstance(decide(received, 5), GiveUp)


def test_waiting_for_a_quota_uses_up_no_attempts() -> None:
    """A request that a quota has sent back ten times is still sent again, but not for ever."""
    body = reply_quota((PER_MINUTE, 5), retry_s=3)
    assert isinstance(decide(body, attempt=10), Retry)
    assert isinstance(decide(body, attempt=60), GiveUp)


def test_a_refused_key_and_an_unknown_model_stop_everything() -> None:
    """400 API_KEY_INVALID, 401, 403 and 404 end the run; another 400 ends only its own request."""
    invalid = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    for received, error in (
        (reply_error(400, "INVALID_ARGUMENT", "API key not valid.", invalid), KeyRefusedError),
        (reply_error(403, "PERMISSION_DENIED", "no"), KeyRefusedError),
        (Received(401), KeyRefusedError),
        (reply_error(404, "NOT_FOUND", "models/x is not found"), UsageError),
    ):
        decided = decide(received)
        assert isinstance(decided, Stop)
        assert isinstance(decided.error, error)
    assert decide(reply_error(400, "INVALID_ARGUMENT", "bad")) == GiveUp("http 400", "bad")
    assert decide(Received(413, "too large")) == GiveUp("http 413", "http 413")


@pytest.mark.parametrize(
    ("message", "delay", "expected"),
    [
        ("Please retry in 34.074824224s.", "34s", 34.074824224),
        ("Please retry in 250.5ms.", None, 0.2505),
        ("no advice", "5s", 5.0),
        ("no advice", "1.000000001s", 1.000000001),
        ("no advice", "soon", None),
        ("no advice", None, None),
    ],
)
def test_both_forms_of_advice_are_read(message: str, delay: str | None, expected: float | None) -> None:
    """The finer figure in the message wins over RetryInfo; milliseconds are milliseconds."""
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}] if delay else []
    assert retry_delay_s({"message": message, "details": details}) == expected


def test_limits_are_learned_from_the_violations() -> None:
    """The quotaId says which limit, quotaValue how much; an unknown kind, a zero or no number teaches nothing."""
    assert learned_limits(reply_quota((PER_MINUTE, 5)).body) == {"rpm": 5}
    assert learned_limits(reply_quota((PER_DAY, 20)).body) == {"rpd": 20}
    assert learned_limits(reply_quota((TOKENS, 250_000)).body) == {"tpm": 250_000}
    assert learned_limits(reply_quota(("SpendPerProject", 10)).body) == {}
    assert learned_limits(reply_quota((PER_MINUTE, 0)).body) == {}
    assert learned_limits(f"[{reply_quota((PER_MINUTE, 5)).body}]") == {"rpm": 5}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "details", "message", "violations", "@type", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(st.one_of(JSON.map(json.dumps), st.text()), st.sampled_from([400, 429, 500, 503, 418]))
def test_no_body_breaks_the_decision(body: str, status: int) -> None:
    """Whatever a proxy or a new server version sends, there is a decision and no exception."""
    assert isinstance(decide(Received(status, body)), Retry | GiveUp | Stop)
    learned_limits(body)


def reply(text: str, finish_reason: str) -> Reply:
    """A reply with status 200."""
    return Reply(text=text, finish_reason=finish_reason, usage=Usage(), model="m")


@pytest.mark.parametrize(
    "reason", ["SAFETY", "RECITATION", "PROMPT_BLOCKED", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MAX_TOKENS"]
)
def test_a_refusal_and_a_spent_limit_are_never_repeated(reason: str) -> None:
    """The same request would end, and be billed, the same way: it is kept with its finish reason, text or not."""
    assert after_reply(reply("", reason), 0, 0.5) == Keep()


@pytest.mark.parametrize("reason", ["STOP", "OTHER", "MISSING", "A_REASON_OF_NEXT_YEAR"])
def test_an_empty_reply_is_asked_again_twice(reason: str) -> None:
    """STOP without text, and reasons without a meaning here, get two more tries and are then listed as failed."""
    assert isinstance(after_reply(reply(" ", reason), 0, 0.5), Retry)
    assert isinstance(after_reply(reply("", reason), 1, 0.5), Retry)
    assert isinstance(after_reply(reply("", reason), 2, 0.5), GiveUp)
    assert after_reply(reply("text", reason), 2, 0.5) == Keep()


def test_an_unreadable_reply_is_asked_again() -> None:
    """A body that was cut off gets two more tries."""
    assert isinstance(after_reply(None, 0, 0.5), Retry)
    assert after_reply(None, 2, 0.5) == GiveUp("unreadable", "unreadable reply, 3 times")
