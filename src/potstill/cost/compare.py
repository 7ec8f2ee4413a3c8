"""The four ways to answer the same queries: Gemini free, Gemini paid, hybrid, local. Pure.

Hourly cost of a machine: rent + watts / 1000 * price of a kWh, for every hour of the month, idle ones included. A
month has 30 days. Break-even: initial cost / (what Gemini paid costs a day - what this way costs a day).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from potstill.records import Attempt, Usage

DAYS = 30
HOURS = DAYS * 24
ASSUMED_USAGE = Usage(input_tokens=500, output_tokens=2000)
ASSUMED_TEACHER_SHARE = Decimal("0.2")


@dataclass(frozen=True)
class Machine:
    """The student's machine: dollars to buy, dollars an hour of rent, watts, dollars a kWh, requests an hour."""

    purchase_usd: Decimal = Decimal(0)
    rent_usd_per_hour: Decimal = Decimal(0)
    watts: Decimal = Decimal(350)
    usd_per_kwh: Decimal = Decimal("0.18")
    requests_per_hour: int = 600

    @property
    def usd_per_month(self) -> Decimal:
        """Rent and power of a machine that is always on."""
        return (self.rent_usd_per_hour + self.watts / 1000 * self.usd_per_kwh) * HOURS


@dataclass(frozen=True)
class Facts:
    """What the comparison stands on, each with its origin: measured in this workspace, or assumed."""

    teacher_usd: Decimal
    teacher_basis: str
    hybrid_usd: Decimal
    hybrid_basis: str
    dataset_usd: Decimal
    free_per_day: int | None
    paid_per_day: int | None


@dataclass(frozen=True)
class Scheme:
    """One way to answer: dollars at the start, a query, a month; queries a day; break-even against Gemini paid."""

    name: str
    initial_usd: Decimal
    usd_per_query: Decimal
    queries_per_day: int | None
    usd_per_month: Decimal
    feasible: bool
    break_even_days: int | None
    break_even_queries: int | None
    remark: str


def mean_usage(attempts: Sequence[Attempt]) -> tuple[Usage, str]:
    """The mean usage of an answer in the ledger, or the source design's 500 + 2,000 tokens; and which it was."""
    done = [attempt.usage for attempt in attempts if attempt.status == "done"]
    if not done:
        return ASSUMED_USAGE, "assumption: 500 input and 2000 output tokens a query"
    total, count = sum(done, Usage()), len(done)
    mean = Usage(**{name: math.ceil(value / count) for name, value in total.model_dump().items()})
    return mean, f"mean of {count} answers in the ledger"


def compare(facts: Facts, machine: Machine, per_day: int) -> tuple[Scheme, ...]:
    """The four schemes for so many queries a day."""
    paid_day = facts.teacher_usd * per_day
    power_day = machine.usd_per_month / DAYS
    local_capacity = machine.requests_per_hour * 24
    initial = machine.purchase_usd + facts.dataset_usd
    share = facts.hybrid_usd / facts.teacher_usd if facts.teacher_usd else Decimal(0)
    by_quota = None if facts.paid_per_day is None or share <= 0 else int(facts.paid_per_day / share)
    hybrid_capacity = local_capacity if by_quota is None else min(local_capacity, by_quota)

    def scheme(name: str, start: Decimal, day_usd: Decimal, capacity: int | None, remark: str) -> Scheme:
        days = _break_even(start, paid_day - day_usd)
        return Scheme(
            name,
            start,
            day_usd / per_day,
            capacity,
            day_usd * DAYS,
            capacity is None or per_day <= capacity,
            days if name in ("hybrid", "local") else None,
            days * per_day if days is not None and name in ("hybrid", "local") else None,
            remark,
        )

    zero = Decimal(0)
    free_remark = "prompts may train Google's products" + (
        "; daily limit not published" if facts.free_per_day is None else ""
    )
    return (
        scheme("gemini free", zero, zero, facts.free_per_day, free_remark),
        scheme("gemini paid", zero, paid_day, facts.paid_per_day, facts.teacher_basis),
        scheme("hybrid", initial, facts.hybrid_usd * per_day + power_day, hybrid_capacity, facts.hybrid_basis),
        scheme("local", initial, power_day, local_capacity, "machine always on"),
    )


def _break_even(initial: Decimal, saved_per_day: Decimal) -> int | None:
    """Days until the initial cost is earned back; None where it never is."""
    return math.ceil(initial / saved_per_day) if saved_per_day > 0 else None
