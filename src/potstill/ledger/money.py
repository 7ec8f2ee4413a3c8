"""Money as the ledger keeps it: integer picodollars. Pure.

A price per million tokens with up to six decimals is then exact for every token, and 64 bits hold nine million dollars.
"""

from __future__ import annotations

from decimal import Decimal

PICO = Decimal(10) ** 12


def to_pico(usd: Decimal) -> int:
    """Dollars in picodollars, rounded up: a reservation may be a trillionth too high, never too low."""
    return int((usd * PICO).to_integral_value(rounding="ROUND_CEILING"))


def from_pico(pico: int) -> Decimal:
    """Picodollars in dollars, exactly."""
    return (Decimal(pico) / PICO).normalize() + 0
