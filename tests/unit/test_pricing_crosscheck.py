"""The book against genai-prices, which others keep: equal cell by cell, but for the differences that are listed here."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices import calc_price

from potstill.config import PricesConfig
from potstill.errors import UnknownModelError
from potstill.pricing.book import load_prices
from potstill.records import Usage

BOOK = load_prices(PricesConfig())
DAYS = (date(2026, 8, 1), date(2026, 11, 24), date(2026, 12, 15), date(2027, 1, 2))
USAGES = (
    Usage(input_tokens=500, output_tokens=2000),
    Usage(input_tokens=5000, output_tokens=100, cached_tokens=4000),
    Usage(input_tokens=250_000, output_tokens=1000),
)
MODELS = [model.id for model in BOOK.models() if model.prices and not model.id.startswith("gemma")]
BATCH_IN_OUR_BOOK_ALONE = {"gemini-3.5-flash", "gemini-3.7-flash", "gemini-embedding-001"}
"""genai-prices has no batch rate for these and answers the full price in silence."""

BATCH_SINCE = date(2026, 10, 14)
"""Batch before that day is full price in genai-prices: its history is not modelled there."""


def theirs(model: str, service: str, on: date, usage: Usage) -> Decimal:
    """What genai-prices says."""
    return calc_price(
        TheirUsage(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cached_tokens or None,
            output_tokens=usage.output_tokens,
        ),
        model_ref=model,
        provider_id="google",
        genai_request_timestamp=datetime(on.year, on.month, on.day, 12, tzinfo=UTC),
        price_context={"processing": "batch"} if service == "batch" else None,
    ).total_price


def known_difference(model: str, service: str, on: date) -> str:
    """Why the two may differ here; empty where they may not."""
    if service == "batch" and (model in BATCH_IN_OUR_BOOK_ALONE or on < BATCH_SINCE):
        return "genai-prices has no batch rate"
    if model == "gemini-3.6-flash" and on < date(2026, 8, 13):
        return "genai-prices gives the introductory price for the weeks before it"
    if BOOK.model(model).gone(on):
        return "genai-prices knows no shutdown: it prices the dead as if alive"
    return ""


@pytest.mark.parametrize("model", MODELS)
def test_equal_but_for_what_is_listed(model: str) -> None:
    """Standard and batch, cached and long prompts, before and after both cliffs: the same cent, or a named reason."""
    compared = 0
    for service in ("standard", "batch"):
        for on in DAYS:
            for usage in USAGES:
                asked = usage if "embedding" not in model else Usage(input_tokens=usage.input_tokens)
                try:
                    ours = BOOK.cost(asked, model, service, on).usd
                except UnknownModelError:
                    continue
                if not known_difference(model, service, on):
                    assert ours == theirs(model, service, on, asked), (service, on, asked)
                    compared += 1
    assert compared or BOOK.model(model).gone(DAYS[0])


def test_the_retired_ones_agree_on_their_last_day() -> None:
    """The dead models' last prices are the same as well; 1.5-flash-8b is genai-prices' own error, double."""
    usage = Usage(input_tokens=500, output_tokens=2000)
    checked = 0
    for model in BOOK.models():
        last = BOOK.last_day(model.id)
        if last is None or last >= DAYS[1] or not model.prices:
            continue
        ours = BOOK.cost(usage, model.id, "standard", last).usd
        factor = 2 if model.id == "gemini-1.5-flash-8b" else 1
        assert ours * factor == theirs(model.id, "standard", last, usage), model.id
        checked += 1
    assert checked == 6


def test_the_listed_differences_are_real() -> None:
    """Every reason above still applies: when genai-prices mends one, this fails and the list gets shorter."""
    usage, november = USAGES[0], DAYS[1]
    for model in BATCH_IN_OUR_BOOK_ALONE - {"gemini-embedding-001"}:
        assert theirs(model, "batch", november, usage) == theirs(model, "standard", november, usage)
        assert BOOK.cost(usage, model, "batch", november).usd * 2 == BOOK.cost(usage, model, "standard", november).usd
    assert theirs("gemini-3.6-flash", "standard", DAYS[0], usage) == Decimal("0.007875")
    assert BOOK.cost(usage, "gemini-3.6-flash", "standard", DAYS[0]).usd == Decimal("0.01575")
    assert theirs("gemini-3.8-flash-nonsense", "standard", november, usage) == Decimal("0.007875")
    with pytest.raises(UnknownModelError):
        BOOK.cost(usage, "gemini-3.8-flash-nonsense", "standard", november)
