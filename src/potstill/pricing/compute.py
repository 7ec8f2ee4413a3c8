"""What machines cost: dated rents of GPUs, electricity, and the cards' power and speed. Data and pure arithmetic."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import TypeVar

from potstill.errors import InputError
from potstill.pricing.files import shipped_text
from potstill.pricing.rows import Row, Source
from potstill.records import from_data

Found = TypeVar("Found")


class Card(Row):
    """A GPU's peak of dense 16-bit matrix products, in TFLOPS, and its board power, in watts."""

    name: str
    tflops: Decimal
    watts: Decimal
    source: str
    as_of: str


class GpuPrice(Row):
    """Dollars an hour for a rented machine; `idle_tail_s`: seconds billed after the last request before it is gone."""

    id: str
    provider: str
    gpu: str
    usd_per_hour: Decimal
    card: str | None = None
    idle_tail_s: int | None = None
    source: str
    as_of: str
    note: str = ""


class Electricity(Row):
    """The price of a kWh in a region's currency."""

    id: str
    region: str
    per_kwh: Decimal
    currency: str
    source: str
    as_of: str
    note: str = ""


class Compute(Row):
    """The shipped data."""

    schema_version: int
    read: date
    about: str
    sources: Mapping[str, Source]
    cards: tuple[Card, ...]
    gpus: tuple[GpuPrice, ...]
    electricity: tuple[Electricity, ...]

    def gpu(self, name: str) -> GpuPrice:
        """A rented machine by id; raises InputError naming its nearest neighbour."""
        return _by(name, {row.id: row for row in self.gpus}, "machine")

    def card(self, name: str) -> Card:
        """A card by name."""
        return _by(name, {row.name: row for row in self.cards}, "card")

    def card_in(self, device: str) -> Card | None:
        """The card that a driver's device name speaks of (`NVIDIA A100-SXM4-80GB`); None for one that is not here."""
        named = [row for row in self.cards if re.search(rf"\b{re.escape(row.name)}\b", device, re.IGNORECASE)]
        return max(named, key=lambda row: len(row.name), default=None)

    def kwh(self, name: str, *, currency: str = "USD", rate: Decimal | None = None) -> Decimal:
        """Dollars a kWh in a region; a price in another currency needs the user's rate for it.

        Raises InputError for an unknown region, and where the rate is missing: no rate is built in.
        """
        row = _by(name, {row.id: row for row in self.electricity}, "electricity price")
        if row.currency == "USD":
            return row.per_kwh
        if currency != row.currency or rate is None:
            message = (
                f"electricity {name!r} is {row.per_kwh} {row.currency} a kWh, and no rate for {row.currency} is set"
            )
            raise InputError(message, hint=f"--currency {row.currency} --rate N, units for a dollar")
        return row.per_kwh / rate


def load_compute() -> Compute:
    """The shipped rents, cards and electricity prices."""
    return from_data(Compute, json.loads(shipped_text("compute.json")), "compute.json")


def _by(name: str, rows: Mapping[str, Found], what: str) -> Found:
    if name in rows:
        return rows[name]
    near: Sequence[str] = difflib.get_close_matches(name, rows, n=1)
    message = f"there is no {what} called {name!r}"
    raise InputError(message, hint=(f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(rows)}")
