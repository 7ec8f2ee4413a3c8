"""Time to finish: the slowest limit decides, and more work never takes less time."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from potstill.pricing.finish import DAY_S, Rates, batch_to_finish, time_to_finish

COUNT = st.integers(0, 100_000)
MAYBE = st.none() | st.integers(1, 10_000)


def test_the_free_tier_takes_fifty_days_for_a_thousand() -> None:
    """Twenty requests a day: the thousandth answer comes on the fiftieth day, four minutes into it at 5 RPM."""
    found = time_to_finish(1000, 500_000, Decimal(0), Rates(rpm=5, tpm=250_000, rpd=20))
    assert (found.limit, found.seconds) == ("rpd", 49 * DAY_S + 240)


def test_the_spend_limit_alone_can_decide() -> None:
    """A thousand answers of Argon for $21 take 21 minutes where $10 may be spent in ten of them, at any RPM."""
    rates = Rates(rpm=1000, usd_per_10_min=Decimal(10), monthly_cap_usd=Decimal(20))
    found = time_to_finish(1000, 500_000, Decimal(21), rates)
    assert (found.limit, found.seconds) == ("usd_per_10_min", 1260)
    assert "cap of $20 a month" in found.warning


def test_a_batch_waits_once_a_filling_of_the_queue() -> None:
    """Twenty-five million tokens through a queue of ten million take three times the target."""
    assert batch_to_finish(25_000_000, Decimal(1), Rates(enqueued_tokens=10_000_000)).seconds == 3 * DAY_S


@given(COUNT, COUNT, st.decimals(0, 1000, places=4), MAYBE, MAYBE, MAYBE, COUNT)
def test_more_work_never_takes_less(
    requests: int, tokens: int, usd: Decimal, rpm: int | None, tpm: int | None, rpd: int | None, more: int
) -> None:
    """Monotone in requests, tokens and dollars; never negative; without limits it takes no time."""
    rates = Rates(rpm=rpm, tpm=tpm, rpd=rpd, usd_per_10_min=Decimal(10))
    small = time_to_finish(requests, tokens, usd, rates).seconds
    assert 0 <= small <= time_to_finish(requests + more, tokens + more, usd + more, rates).seconds
    assert time_to_finish(requests, tokens, usd, Rates()).seconds == 0
