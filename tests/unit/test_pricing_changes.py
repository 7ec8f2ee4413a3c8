"""What lies ahead in the book, and the alarm that rings before an introductory price ends."""

from __future__ import annotations

from datetime import UTC, date, datetime

from potstill.config import PricesConfig
from potstill.pricing.book import PriceBook, load_prices
from potstill.pricing.changes import age_warning, changes, due_for_review

BOOK = load_prices(PricesConfig())
NOVEMBER = date(2026, 11, 24)


def read_on(day: date) -> PriceBook:
    """The shipped book as if it had been read on another day."""
    return PriceBook(BOOK.data.model_copy(update={"read": day}), {})


def test_both_cliffs_and_both_shutdowns_lie_ahead() -> None:
    """In the forty days after 2026-11-24 Argon and three Flash models double, and two models go."""
    found = changes(BOOK, NOVEMBER, date(2027, 1, 2))
    assert [(change.day, change.model, change.kind) for change in found] == [
        (date(2026, 12, 1), "gemini-2.5-flash", "shutdown"),
        (date(2026, 12, 1), "gemini-2.5-pro", "shutdown"),
        (date(2026, 12, 1), "gemini-4-argon", "price"),
        (date(2027, 1, 1), "gemini-3.6-flash", "price"),
        (date(2027, 1, 1), "gemini-3.7-flash", "price"),
        (date(2027, 1, 1), "gemini-3.8-flash", "price"),
    ]
    assert "gemini-3.5-flash-lite" in found[0].text
    assert not changes(BOOK, NOVEMBER, date(2027, 1, 2), frozenset({"gemini-3.5-flash-lite"}))


def test_an_old_book_warns() -> None:
    """Sixty days are fine, sixty-one are told."""
    assert age_warning(read_on(date(2026, 9, 25)), NOVEMBER) == ""
    assert "61 days" in age_warning(read_on(date(2026, 9, 24)), NOVEMBER)


def test_the_alarm_rings_before_an_introductory_price_ends_and_stops_when_someone_looked() -> None:
    """Two weeks before New Year's Day the book of November is due; the same book read in December is not."""
    late = date(2026, 12, 20)
    assert {change.model for change in due_for_review(read_on(date(2026, 11, 23)), late)} == {
        "gemini-3.6-flash",
        "gemini-3.7-flash",
        "gemini-3.8-flash",
    }
    assert due_for_review(read_on(date(2026, 12, 10)), late) == ()


def test_no_price_in_the_shipped_book_ends_unwatched() -> None:
    """Red from two weeks before a listed price changes until the book was read again: check the rows, then set `read`."""
    due = due_for_review(BOOK, datetime.now(UTC).date())
    assert not due, "; ".join(f"{change.day}: {change.text}" for change in due)
