"""The price book: worked examples, dated changes, and what it refuses."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import PricesConfig
from potstill.errors import UnknownModelError
from potstill.pricing.book import load_prices
from potstill.records import Usage

BOOK = load_prices(PricesConfig())
DAY = date(2026, 11, 23)
JANUARY = date(2027, 1, 1)
TOKENS = st.integers(0, 90_000)
EXAMPLES = [
    ("gemini-1.5-flash", "standard", date(2025, 9, 28), "0.0006375"),
    ("gemini-3.5-flash-lite", "standard", DAY, "0.00515"),
    ("gemini-3.5-flash-lite", "batch", DAY, "0.002575"),
    ("gemini-3.8-flash", "standard", DAY, "0.007875"),
    ("gemini-3.8-flash", "standard", JANUARY, "0.01575"),
    ("gemini-3.1-flash-lite", "standard", DAY, "0.003125"),
    ("gemini-4-argon", "standard", DAY, "0.021"),
    ("gemini-4-argon", "standard", date(2026, 12, 1), "0.042"),
]


@pytest.mark.parametrize(("model", "service", "on", "usd"), EXAMPLES)
def test_a_call_of_500_and_2000_tokens(model: str, service: str, on: date, usd: str) -> None:
    """500 input and 2,000 output tokens cost exactly what the published rates say, before and after a price change."""
    assert BOOK.cost(Usage(input_tokens=500, output_tokens=2000), model, service, on).usd == Decimal(usd)


@given(TOKENS, TOKENS, TOKENS, TOKENS)
def test_cost_is_additive_and_never_negative(first_in: int, first_out: int, next_in: int, next_out: int) -> None:
    """Two calls cost the sum of each, and one that is larger is never cheaper."""
    price = BOOK.price("gemini-3.5-flash-lite", "standard", DAY)
    first = Usage(input_tokens=first_in, output_tokens=first_out)
    second = Usage(input_tokens=next_in, output_tokens=next_out)
    assert price.cost(first + second) == price.cost(first) + price.cost(second) >= price.cost(first) >= 0


@pytest.mark.parametrize(
    ("model", "service", "on"),
    [
        ("gemini-9-none", "standard", DAY),
        ("gemini-3.5-flash-lite", "overnight", DAY),
        ("gemini-2.0-flash", "standard", DAY),
        ("gemini-3.8-flash", "priority", JANUARY),
        ("text-embedding-004", "standard", date(2025, 12, 1)),
    ],
)
def test_no_row_is_an_error(model: str, service: str, on: date) -> None:
    """An unknown model or service, or a day after the shutdown, is refused and never priced at 0."""
    with pytest.raises(UnknownModelError):
        BOOK.price(model, service, on)


def test_an_embedding_model_has_no_price_for_output() -> None:
    """A model without an output price is refused when output is counted, never given away."""
    assert BOOK.cost(Usage(input_tokens=1_000_000), "gemini-embedding-001", "standard", DAY).usd == Decimal("0.15")
    with pytest.raises(UnknownModelError, match="output"):
        BOOK.cost(Usage(output_tokens=1), "gemini-embedding-001", "standard", DAY)


def test_a_retired_model_is_priced_as_what_answers() -> None:
    """From its shutdown on, gemini-2.5-pro costs what gemini-3.8-flash costs that day, and the row says so."""
    usage = Usage(input_tokens=500, output_tokens=2000)
    before = BOOK.cost(usage, "gemini-2.5-pro", "standard", date(2026, 11, 30))
    after = BOOK.cost(usage, "gemini-2.5-pro", "standard", date(2026, 12, 1))
    assert (before.usd, after.usd) == (Decimal("0.020625"), Decimal("0.007875"))
    assert after.price_id.startswith("gemini-3.8-flash/")


def test_a_long_prompt_is_billed_whole_at_its_tier() -> None:
    """One token past 200,000 doubles the price of the whole request, and the worst case counts that tier."""
    at, over = (BOOK.price("gemini-2.5-pro", "standard", DAY, tokens) for tokens in (200_000, 200_001))
    assert (at.input, over.input, over.output) == (Decimal("1.25"), Decimal("2.5"), Decimal(15))
    worst = BOOK.worst_case(
        "gemini-2.5-pro", "standard", DAY, input_tokens=1000, max_output_tokens=1000, thinking_budget=0
    )
    assert worst == (1000 * Decimal("2.5") + 1000 * Decimal(15)) / 1_000_000


def test_the_worst_case_looks_a_day_ahead() -> None:
    """On the eve of a price change a reservation holds the dearer price, for nobody prints the hour of the change."""
    eve = BOOK.worst_case(
        "gemini-3.8-flash", "standard", date(2026, 12, 31), input_tokens=500, max_output_tokens=2000, thinking_budget=0
    )
    assert eve == Decimal("0.01575")


@given(TOKENS, TOKENS, st.sampled_from(["gemini-3.8-flash", "gemini-2.5-pro", "gemini-3.1-pro-preview"]))
def test_the_worst_case_is_never_below_the_cost(tokens: int, output: int, model: str) -> None:
    """What is reserved covers whatever is billed, in every service that the model has."""
    for service in BOOK.services(model, DAY):
        worst = BOOK.worst_case(
            model, service, DAY, input_tokens=tokens, max_output_tokens=output, thinking_budget=output
        )
        usage = Usage(input_tokens=tokens, output_tokens=output, thinking_tokens=output)
        assert BOOK.cost(usage, model, service, DAY).usd <= worst


@given(TOKENS, TOKENS)
def test_cached_tokens_are_never_dearer_and_never_below_zero(tokens: int, cached: int) -> None:
    """Cached tokens lower the price of an input, and an impossible count of them cannot make it negative."""
    price = BOOK.price("gemini-3.5-flash-lite", "standard", DAY)
    assert price.cost(Usage(input_tokens=tokens + cached, cached_tokens=cached)) >= 0
    assert price.cost(Usage(input_tokens=tokens + cached, cached_tokens=cached)) <= price.cost(
        Usage(input_tokens=tokens + cached)
    )
    assert price.cost(Usage(input_tokens=0, cached_tokens=cached)) >= 0


def test_every_row_names_a_source_that_the_book_lists() -> None:
    """No figure without a source: rows, limits, tiers, queues and shutdowns all name one that is listed."""
    data = BOOK.data
    named = {row.source for model in data.models for row in model.prices}
    named |= {name for model in data.models for row in model.prices for name in row.confirmed_by}
    named |= {row.storage.source for model in data.models for row in model.prices if row.storage}
    named |= {model.shutdown_source for model in data.models if model.shutdown}
    named |= {row.source for row in (*data.limits, *data.tiers, *data.grounding)}
    assert data.models
    assert named <= set(data.sources)


def test_no_two_rows_hold_at_once() -> None:
    """For every model, service, day of change and prompt length there is at most one row, so that order decides nothing."""
    for model in BOOK.models():
        days = {day for row in model.prices for day in (row.valid_from, row.valid_to) if day} | {DAY}
        for service in {row.service for row in model.prices}:
            for day in days:
                for tokens in (0, 128_001, 200_001):
                    assert sum(row.covers(service, day, tokens) for row in model.prices) <= 1, (model.id, service, day)
