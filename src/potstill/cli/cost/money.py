"""Money on the command line: reading amounts, and showing dollars in the reader's own currency beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from potstill.config import PricesConfig
from potstill.errors import ConfigError, UsageError

SMALL = Decimal("0.01")
SIGNIFICANT = 4
"""Digits shown of an amount below a cent."""


@dataclass(frozen=True)
class Currency:
    """How amounts are shown. Every sum is made in dollars; the rate is the user's own, and only for display."""

    code: str = "USD"
    rate: Decimal = Decimal(1)

    def show(self, usd: Decimal | None) -> str:
        """An amount for a reader: two digits from a cent on, four significant ones below."""
        if usd is None:
            return "-"
        amount = usd * self.rate
        sign = "$" if self.code == "USD" else f"{self.code} "
        return f"{'-' if amount < 0 else ''}{sign}{_digits(abs(amount))}"

    def exact(self, usd: Decimal) -> str:
        """Every digit of an amount."""
        sign = "$" if self.code == "USD" else f"{self.code} "
        return f"{sign}{plain(usd * self.rate)}"

    @property
    def note(self) -> str:
        """What the amounts were converted by; empty for dollars."""
        return "" if self.code == "USD" else f"amounts in {self.code} at your rate of {self.rate:f} for a dollar"

    @property
    def document(self) -> dict[str, str]:
        """For `--json`, whose sums stay dollars."""
        return {"code": self.code, "rate": plain(self.rate)}


def currency_of(prices: PricesConfig) -> Currency:
    """The currency of the config; raises ConfigError for one without a rate, for no rate is built in."""
    if prices.currency == "USD":
        if prices.rate not in {None, Decimal(1)}:
            message = "prices.rate is set, but prices.currency is USD"
            raise ConfigError(message, hint="name the currency too: --currency TWD --rate N")
        return Currency()
    if prices.rate is None:
        message = f"no rate for {prices.currency}"
        raise ConfigError(message, hint=f"--rate N (prices.rate): {prices.currency} for a dollar; none is built in")
    return Currency(prices.currency, prices.rate)


def plain(value: Decimal) -> str:
    """A decimal without exponent and trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def plain_data(value: Any) -> Any:
    """A result for `--json`: decimals as texts without an exponent, days in ISO form, all the way down."""
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    return [plain_data(item) for item in value] if isinstance(value, list | tuple) else value


def money(text: str, option: str) -> Decimal:
    """An amount from the command line, at least 0; raises UsageError naming the option."""
    try:
        value = Decimal(text)
    except ArithmeticError as error:
        message = f"{option} {text!r} is no number"
        raise UsageError(message) from error
    if not value.is_finite() or value < 0:
        message = f"{option} {text!r} must be a number of at least 0"
        raise UsageError(message)
    return value


def share(text: str | None, option: str) -> Decimal | None:
    """A share from the command line, 0 to 1 or with a per cent sign; raises UsageError."""
    if text is None:
        return None
    value = money(text.removesuffix("%"), option) / (100 if text.endswith("%") else 1)
    if value > 1:
        message = f"{option} {text!r} must be between 0 and 1"
        raise UsageError(message)
    return value


def day(text: str | None, option: str) -> date | None:
    """A day from the command line; raises UsageError."""
    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError as error:
        message = f"{option} {text!r} is no day"
        raise UsageError(message, hint="use YYYY-MM-DD") from error


def today() -> date:
    """Today in UTC: the ledger's days."""
    return datetime.now(UTC).date()


def _digits(amount: Decimal) -> str:
    if amount >= SMALL or amount == 0:
        return f"{amount:,.2f}"
    return plain(amount.quantize(Decimal(1).scaleb(amount.adjusted() - SIGNIFICANT + 1)))
