"""What one call costs in every service, on any day: also for a model that is gone, at its last price. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from potstill.errors import UnknownModelError
from potstill.pricing.book import Price, PriceBook
from potstill.pricing.changes import AHEAD, changes
from potstill.pricing.rows import SERVICES
from potstill.records import Usage


@dataclass(frozen=True)
class Quote:
    """Dollars for one call, the row that they come from, the day that they hold for, and what must be said beside."""

    usd: Decimal
    price: Price
    on: date
    note: str = ""


@dataclass(frozen=True)
class Ahead:
    """The same call after a change that lies ahead."""

    on: date
    what: str
    usd: Decimal | None


def quotes(book: PriceBook, usage: Usage, model: str, *, today: date, as_of: date | None = None) -> dict[str, Quote]:
    """Price one call in every service that has a price; raises UnknownModelError where even standard has none."""
    found = {}
    for service in SERVICES:
        try:
            found[service] = quote(book, usage, model, service, today=today, as_of=as_of)
        except UnknownModelError:
            if service == "standard":
                raise
    return found


def quote(book: PriceBook, usage: Usage, model: str, service: str, *, today: date, as_of: date | None = None) -> Quote:
    """Price one call as of a day, by default today.

    A retired model whose requests nothing answers is then priced as of its last day; one whose requests are routed on,
    at the price of what answers. Either is said in the note. Raises UnknownModelError for an unknown model, and for an
    `as_of` on which there is no price.
    """
    on, note = as_of or today, ""
    if model.removeprefix("models/") not in book.overridden:
        found = book.model(model)
        if found.gone(on) and found.routed_to is not None:
            answering = book.answering(model, on)
            note = f"{found.id} was shut down on {found.shutdown}: {answering.id} answers, at its own price"
        elif as_of is None and found.gone(on):
            on = book.last_day(model) or on
            note = f"{found.id} is retired; this is its price on its last day, {on}"
    price = book.price(model, service, on, usage.input_tokens)
    return Quote(price.cost(usage), price, on, note)


def ahead(book: PriceBook, usage: Usage, model: str, on: date) -> tuple[Ahead, ...]:
    """What the call will cost after each change of the next sixty days; None: it will be refused."""
    if model.removeprefix("models/") in book.overridden or (
        (gone := book.model(model)).gone(on) and not gone.routed_to
    ):
        return ()
    found = []
    for change in changes(book, on, on + AHEAD, frozenset({book.model(model).id, book.answering(model, on).id})):
        try:
            usd = book.cost(usage, model, "standard", change.day).usd
        except UnknownModelError:
            usd = None
        found.append(Ahead(change.day, change.text, usd))
    return tuple(found)


def outdated(book: PriceBook, current: PriceBook, usage: Usage, model: str, today: date) -> str:
    """Where another book's price of a call is not today's; empty where it is, or where it is the current book.

    A model that is gone today is held against its own last price.
    """
    if book.name == current.name:
        return ""
    here = quote(book, usage, model, "standard", today=today)
    try:
        now = quote(current, usage, model, "standard", today=today)
    except UnknownModelError:
        return f"book {book.name}, read {book.read_on}: {model} is not in the current book"
    if now.price.input == here.price.input and now.price.output == here.price.output and now.on == today:
        return ""
    since = "" if now.on == today else f" (its last price, {now.on}: the model is gone)"
    return (
        f"outdated: book {book.name} says ${here.price.input:f} / ${here.price.output or 0:f} a million tokens for "
        f"{model}; the current book says ${now.price.input:f} / ${now.price.output or 0:f}{since}, which makes this "
        f"call ${now.usd.normalize():f}{_factor(now.usd, here.usd)}"
    )


def _factor(now: Decimal, then: Decimal) -> str:
    return f", {now / then:.2f} times as much" if then else ""
