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
        ("gemini-2.5-flash", "standard", date(2026, 12, 1)),
    ],
)
def test_no_row_is_an_error(model: str, service: str, on: date) -> None:
    """An unknown model or service, or a day after the shutdown, is refused and never priced at 0."""
    with pytest.raises(UnknownModelError):
        BOOK.price(model, service, on)
