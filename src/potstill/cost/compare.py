"""The four ways to answer the same queries: Gemini free, Gemini paid, hybrid, local. Pure.

A local answer costs its power: watts / 1000 * seconds / 3600 * price of a kWh; idle hours are not counted. In the
hybrid every query is tried locally, and a share goes to Gemini as well. A month has 30 days. Break-even: initial cost /
(what a query costs at Gemini - what it costs this way), in queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

DAYS = 30
DAY_S = 86_400


@dataclass(frozen=True)
class Facts:
    """What the comparison stands on; `free_rpd` and `paid_rpd` are None where no daily limit is known."""

    gemini_usd: Decimal
    queries_a_day: int
    gemini_share: Decimal
    initial_usd: Decimal
    watts: Decimal
    usd_per_kwh: Decimal
    seconds_per_answer: Decimal
    free_rpd: int | None
    paid_rpd: int | None

    @property
    def local_usd(self) -> Decimal:
        """Dollars of power for one local answer."""
        return self.watts / 1000 * self.seconds_per_answer / 3600 * self.usd_per_kwh


@dataclass(frozen=True)
class Scheme:
    """One way to answer: dollars at the start, a query and a month; queries a day; break-even against Gemini paid."""

    name: str
    initial_usd: Decimal
    query_usd: Decimal
    queries_a_day: int | None
    month_usd: Decimal
    break_even_queries: int | None


def compare(facts: Facts) -> tuple[Scheme, ...]:
    """The four schemes for the same queries."""
    local, zero = int(DAY_S / facts.seconds_per_answer), Decimal(0)
    through = facts.paid_rpd
    hybrid = local if through is None or not facts.gemini_share else min(local, int(through / facts.gemini_share))
    hybrid_usd = facts.local_usd + facts.gemini_share * facts.gemini_usd
    return (
        _scheme(facts, "gemini free", zero, zero, facts.free_rpd),
        _scheme(facts, "gemini paid", zero, facts.gemini_usd, facts.paid_rpd),
        _scheme(facts, "hybrid", facts.initial_usd, hybrid_usd, hybrid),
        _scheme(facts, "local", facts.initial_usd, facts.local_usd, local),
    )


def _scheme(facts: Facts, name: str, initial: Decimal, query: Decimal, capacity: int | None) -> Scheme:
    saved = facts.gemini_usd - query
    even = math.ceil(initial / saved) if initial and saved > 0 else None
    return Scheme(name, initial, query, capacity, query * facts.queries_a_day * DAYS, even)
