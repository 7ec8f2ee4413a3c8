"""Which assumption moves the month most: hit rate against escalation, and every input halved and raised by half. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from potstill.cost.schemes import ONE, ZERO, Scenario, month

HIT_RATES = tuple(Decimal(text) for text in ("0", "0.2", "0.4", "0.6", "0.8"))
ESCALATIONS = tuple(Decimal(text) for text in ("0", "0.05", "0.1", "0.25", "0.5", "1"))
LESS, MORE = Decimal("0.5"), Decimal("1.5")

Change = Callable[[Scenario, Decimal], Scenario]


@dataclass(frozen=True)
class Cell:
    """Dollars a month at one hit rate and one escalation rate, and their share of Gemini paid."""

    hit_rate: Decimal
    escalation: Decimal
    month_usd: Decimal
    of_paid: Decimal | None


@dataclass(frozen=True)
class Swing:
    """Dollars a month with one input halved, and raised by half."""

    input: str
    less_usd: Decimal
    more_usd: Decimal

    @property
    def width(self) -> Decimal:
        """How far apart the two are."""
        return abs(self.more_usd - self.less_usd)


def grid(scenario: Scenario, paid: Scenario, queries_a_day: int) -> tuple[Cell, ...]:
    """The month for every hit rate and escalation rate."""
    base = _month(paid, queries_a_day)

    def cell(hit_rate: Decimal, escalation: Decimal) -> Cell:
        usd = _month(replace(scenario, hit_rate=hit_rate, escalation=escalation), queries_a_day)
        return Cell(hit_rate, escalation, usd, usd / base if base else None)

    return tuple(cell(hit_rate, escalation) for hit_rate in HIT_RATES for escalation in ESCALATIONS)


def swings(scenario: Scenario, queries_a_day: int) -> tuple[Swing, ...]:
    """Every input that the scenario has, the one that moves the month most first."""
    found = [
        Swing("queries a day", *(_month(scenario, int(queries_a_day * factor)) for factor in (LESS, MORE))),
        *(
            Swing(name, *(_month(change(scenario, factor), queries_a_day) for factor in (LESS, MORE)))
            for name, change in _changes(scenario)
        ),
    ]
    return tuple(sorted(found, key=lambda swing: swing.width, reverse=True))


def _changes(scenario: Scenario) -> Iterator[tuple[str, Change]]:
    if scenario.hit_rate:
        yield "hit rate", lambda found, factor: replace(found, hit_rate=min(ONE, found.hit_rate * factor))
    if scenario.teacher is not None:
        if scenario.machine is not None:
            yield "escalation", lambda found, factor: replace(found, escalation=min(ONE, found.escalation * factor))
        yield "price of a call", _teacher_usd
    if scenario.machine is not None:
        for name, field in _machine_fields(scenario):
            yield name, _machine_change(field)


def _machine_fields(scenario: Scenario) -> Sequence[tuple[str, str]]:
    names = {
        "seconds an answer": "seconds_per_answer",
        "rent": "usd_per_hour",
        "watts": "watts",
        "idle watts": "idle_watts",
        "price of a kWh": "usd_per_kwh",
    }
    return [(name, field) for name, field in names.items() if getattr(scenario.machine, field) != ZERO]


def _machine_change(field: str) -> Change:
    def change(scenario: Scenario, factor: Decimal) -> Scenario:
        machine = scenario.machine
        assert machine is not None
        return replace(scenario, machine=replace(machine, **{field: getattr(machine, field) * factor}))

    return change


def _teacher_usd(scenario: Scenario, factor: Decimal) -> Scenario:
    teacher = scenario.teacher
    assert teacher is not None
    return replace(scenario, teacher=replace(teacher, usd=teacher.usd * factor))


def _month(scenario: Scenario, queries_a_day: int) -> Decimal:
    return sum(month(scenario, queries_a_day), ZERO)
