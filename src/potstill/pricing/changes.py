"""What lies ahead in a price book: price changes and shutdowns in a span of days, and how old the book is. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from potstill.pricing.book import PriceBook
from potstill.pricing.rows import Model, Price
from potstill.wording import counted

STALE = timedelta(days=60)
"""Older figures are shown with a warning."""

AHEAD = timedelta(days=60)
"""How far ahead changes are told of."""

RECHECK = timedelta(days=14)
"""So long before a change the book must have been read again."""


@dataclass(frozen=True)
class Change:
    """On `day` something changes for a model: `kind` is "price" or "shutdown"; `text` says it to a reader."""

    model: str
    day: date
    kind: str
    text: str


def changes(book: PriceBook, start: date, end: date, models: frozenset[str] | None = None) -> tuple[Change, ...]:
    """All changes after `start`, up to and with `end`, in the order of their days; `models` by id, None: all."""
    found = [
        change
        for model in book.models()
        if models is None or model.id in models
        for change in (*_shutdowns(model), *_price_changes(model))
        if start < change.day <= end
    ]
    return tuple(sorted(found, key=lambda change: (change.day, change.model)))


def age_warning(book: PriceBook, today: date) -> str:
    """A warning where the book was read more than 60 days ago, else an empty text."""
    age = today - book.read_on
    if age <= STALE:
        return ""
    return f"the prices were read {counted(age.days, 'day')} ago ({book.read_on}); check them, or update potstill"


def due_for_review(book: PriceBook, today: date) -> tuple[Change, ...]:
    """Changes less than 14 days ahead for which the book was not read again in the 30 days before them.

    What a test looks at, so that it goes red before an introductory price ends, and green once someone has looked.
    """
    fresh = timedelta(days=30)
    return tuple(
        change
        for change in changes(book, today, today + RECHECK)
        if change.kind == "price" and book.read_on < change.day - fresh
    )


def _shutdowns(model: Model) -> Iterator[Change]:
    if model.shutdown is None:
        return
    what = "is shut down at the earliest" if model.shutdown_is_earliest else "is shut down"
    then = f"; its requests go to {model.routed_to}, at that model's price" if model.routed_to else ""
    yield Change(model.id, model.shutdown, "shutdown", f"{model.id} {what}{then}")


def _price_changes(model: Model) -> Iterator[Change]:
    """Changes of the standard price, which the other services follow."""
    rows = [row for row in model.prices if row.service == "standard" and not row.prompt_over]
    for row in rows:
        if row.valid_to is None:
            continue
        day = row.valid_to + timedelta(days=1)
        if model.gone(day):
            continue
        after = next((other for other in rows if other.valid_from == day), None)
        then = _prices(after) if after else "an unpublished price: it will be refused"
        yield Change(model.id, day, "price", f"{model.id} goes from {_prices(row)} to {then}")


def _prices(row: Price) -> str:
    return f"${row.input:f} / ${row.output or 0:f} a million"
