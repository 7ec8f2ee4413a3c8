"""The comparison and the estimate's interval."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import example, given
from hypothesis import strategies as st

from potstill.cost.compare import Facts, compare
from potstill.cost.estimate import ENOUGH, output_tokens


def test_break_even_is_initial_cost_over_what_a_query_saves() -> None:
    """With $51.50 at the start and free power, local has earned it back after 10,000 queries of $0.00515."""
    facts = Facts(
        gemini_usd=Decimal("0.00515"),
        queries_a_day=1000,
        gemini_share=Decimal(1),
        initial_usd=Decimal("51.50"),
        watts=Decimal(0),
        usd_per_kwh=Decimal("0.18"),
        seconds_per_answer=Decimal(2),
        free_rpd=20,
        paid_rpd=None,
    )
    free, paid, hybrid, local = compare(facts)
    assert (free.month_usd, free.queries_a_day) == (0, 20)
    assert paid.month_usd == Decimal("154.5")
    assert hybrid.break_even_queries is None
    assert local.break_even_queries == 10_000


def test_without_history_there_is_no_interval() -> None:
    """Fewer answers than are enough give an assumption, and no interval that would look measured."""
    found = output_tokens([100] * (ENOUGH - 1), 50, 1024)
    assert (found.low, found.high) == (None, None)
    assert "assumption" in found.basis


@given(st.lists(st.integers(0, 4000), min_size=ENOUGH, max_size=60), st.integers(0, 1000))
@example([0] * 7 + [1071, 1100, 1745], 0)
def test_the_interval_holds_its_mean(history: list[int], todo: int) -> None:
    """The mean always lies inside its interval, which no spread of the answers can blow up."""
    found = output_tokens(history, todo, 1024)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= max(4000, 1024)
