"""Ways to answer the same queries, and what each costs: Gemini, a student on a machine, or both. Pure.

The formulas are derived in docs/cost-formulas.md. A month has 30 days. Every query that misses the cache is tried by the
student where there is one, and a share of those goes on to Gemini: an attempt that falls back is paid twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from decimal import Decimal

DAYS = 30
DAY_S = 86_400
HOURS_A_MONTH = 720
ZERO = Decimal(0)
ONE = Decimal(1)
MOST_QUERIES = 10**9
"""Where the search for a break-even volume ends."""


@dataclass(frozen=True)
class Teacher:
    """Dollars for one call, and the limits of the project; None: no such limit, or none that is published."""

    usd: Decimal
    rpm: int | None = None
    rpd: int | None = None
    usd_per_10_min: Decimal | None = None
    monthly_cap_usd: Decimal | None = None


@dataclass(frozen=True)
class Machine:
    """What runs the student.

    `usd_per_hour`: rent; `watts`, `idle_watts`, `usd_per_kwh`, `pue` (overhead of the building): electricity, 0 in a
    rent; `always_on`: paid day and night, else from the first query of a burst to `idle_tail_s` after its last;
    `seconds_per_answer` at `concurrency` answers at once.
    """

    seconds_per_answer: Decimal
    usd_per_hour: Decimal = ZERO
    watts: Decimal = ZERO
    idle_watts: Decimal = ZERO
    usd_per_kwh: Decimal = ZERO
    pue: Decimal = ONE
    always_on: bool = True
    idle_tail_s: int = 0
    concurrency: int = 1


@dataclass(frozen=True)
class Scenario:
    """One way to answer. `hit_rate`: share answered by the cache; `escalation`: share of the misses sent to Gemini."""

    name: str
    teacher: Teacher | None = None
    machine: Machine | None = None
    hit_rate: Decimal = ZERO
    escalation: Decimal = ONE
    initial_usd: Decimal = ZERO

    @property
    def teacher_share(self) -> Decimal:
        """Share of all queries that reaches Gemini."""
        return (1 - self.hit_rate) * self.escalation if self.teacher else ZERO


@dataclass(frozen=True)
class Scheme:
    """What a scenario costs at a volume.

    `capacity`: queries a day under its limits, decided by `limit`; None where none is known. Break-even against Gemini
    paid: None where it never comes. `cheaper_from`: queries a day from which on the month, with the initial investment
    spread over the horizon, is cheaper.
    """

    name: str
    initial_usd: Decimal
    query_usd: Decimal
    month_usd: Decimal
    teacher_month_usd: Decimal
    machine_month_usd: Decimal
    capacity: int | None
    limit: str
    break_even_queries: int | None = None
    break_even_days: int | None = None
    cheaper_from: int | None = None
    notes: tuple[str, ...] = field(default=())


def month(scenario: Scenario, queries_a_day: int) -> tuple[Decimal, Decimal]:
    """Dollars a month at Gemini, and for the machine."""
    asked = scenario.teacher_share * queries_a_day * DAYS
    teacher = asked * scenario.teacher.usd if scenario.teacher else ZERO
    if scenario.machine is None:
        return teacher, ZERO
    return teacher, _machine_month(scenario.machine, (1 - scenario.hit_rate) * queries_a_day)


def hours_up(machine: Machine, answers_a_day: Decimal) -> Decimal:
    """Hours a month for which the machine is paid.

    One that scales to zero is up while an answer is under way or `idle_tail_s` has not passed since: for queries that
    come at random (Poisson, rate r) the share of time is 1 - exp(-r * (tail + seconds of an answer)).
    """
    if machine.always_on:
        return Decimal(HOURS_A_MONTH)
    rate = answers_a_day / DAY_S
    return HOURS_A_MONTH * (1 - (-rate * (machine.idle_tail_s + machine.seconds_per_answer)).exp())


def capacity(scenario: Scenario) -> tuple[int | None, str]:
    """The most queries a day, and what decides."""
    limits = {**_machine_limits(scenario), **_teacher_limits(scenario)}
    if not limits:
        return None, "not published"
    name = min(limits, key=lambda key: limits[key])
    return int(limits[name]), name


def evaluate(scenario: Scenario, queries_a_day: int, paid: Scenario, horizon_days: int) -> Scheme:
    """A scenario at a volume, against answering everything with `paid`."""
    teacher, machine = month(scenario, queries_a_day)
    total, base = teacher + machine, sum(month(paid, queries_a_day), ZERO)
    most, limit = capacity(scenario)
    days = _break_even_days(scenario.initial_usd, base - total)
    notes = []
    if most is not None and most < queries_a_day:
        notes.append(f"{scenario.name} cannot carry {queries_a_day} queries a day ({limit}: {most})")
    return Scheme(
        name=scenario.name,
        initial_usd=scenario.initial_usd,
        query_usd=total / (queries_a_day * DAYS) if queries_a_day else ZERO,
        month_usd=total,
        teacher_month_usd=teacher,
        machine_month_usd=machine,
        capacity=most,
        limit=limit,
        break_even_queries=None if days is None else math.ceil(days * queries_a_day),
        break_even_days=None if days is None else math.ceil(days),
        cheaper_from=cheaper_from(scenario, paid, horizon_days),
        notes=tuple(notes),
    )


def cheaper_from(scenario: Scenario, paid: Scenario, horizon_days: int) -> int | None:
    """The fewest queries a day at which a month is cheaper than `paid`, initial investment spread over the horizon."""
    if replace(scenario, name=paid.name) == paid or (
        scenario.machine is None and scenario.teacher is not None and not scenario.teacher.usd
    ):
        return None  # free is cheaper from the first query on; its quota decides, not its price
    spread = scenario.initial_usd * DAYS / horizon_days

    def saves(queries: int) -> bool:
        return sum(month(paid, queries), ZERO) > sum(month(scenario, queries), ZERO) + spread

    high = 1
    while not saves(high):
        high *= 2
        if high > MOST_QUERIES:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if saves(middle) else (middle, high)
    return high


def _machine_month(machine: Machine, answers_a_day: Decimal) -> Decimal:
    up = hours_up(machine, answers_a_day)
    busy = min(up, answers_a_day * DAYS * machine.seconds_per_answer / machine.concurrency / 3600)
    kwh = (machine.watts * busy + machine.idle_watts * (up - busy)) / 1000 * machine.pue
    return machine.usd_per_hour * up + kwh * machine.usd_per_kwh


def _machine_limits(scenario: Scenario) -> dict[str, Decimal]:
    machine, missed = scenario.machine, 1 - scenario.hit_rate
    if machine is None or not missed:
        return {}
    return {"machine": DAY_S * machine.concurrency / machine.seconds_per_answer / missed}


def _teacher_limits(scenario: Scenario) -> dict[str, Decimal]:
    """Queries a day that each of Gemini's limits allows, at this share of them."""
    teacher, share = scenario.teacher, scenario.teacher_share
    if teacher is None or not share:
        return {}
    usd = teacher.usd * share
    found = {
        "requests a day": teacher.rpd / share if teacher.rpd is not None else None,
        "requests a minute": teacher.rpm * 1440 / share if teacher.rpm is not None else None,
        "dollars in ten minutes": teacher.usd_per_10_min * 144 / usd if teacher.usd_per_10_min and usd else None,
        "the month's cap": teacher.monthly_cap_usd / DAYS / usd if teacher.monthly_cap_usd and usd else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _break_even_days(initial: Decimal, saved_a_month: Decimal) -> Decimal | None:
    if not initial or saved_a_month <= 0:
        return None
    return initial / (saved_a_month / DAYS)
