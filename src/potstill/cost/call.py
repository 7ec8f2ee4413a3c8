"""What one call costs, on any day: also for a model that is gone, at its last price. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from potstill.pricing.book import Price, PriceBook
from potstill.records import Usage


@dataclass(frozen=True)
class Quote:
    """Dollars for one call, the row that they come from, the day that they hold for, and a remark."""

    usd: Decimal
    price: Price
    on: date
    note: str = ""


def quote(book: PriceBook, usage: Usage, model: str, service: str, *, today: date, as_of: date | None = None) -> Quote:
    """Price one call as of a day, by default today; a retired model is then priced as of its last day, with a note.

    Raises UnknownModelError for an unknown model, and for an `as_of` on which there is no price.
    """
    on, note = as_of or today, ""
    if as_of is None and model.removeprefix("models/") not in book.overridden:
        last = book.last_day(model)
        if last is not None and last < today:
            on, note = last, f"{model} is retired; this is its price on its last day, {last}"
    price = book.price(model, service, on, usage.input_tokens)
    return Quote(price.cost(usage), price, on, note)
