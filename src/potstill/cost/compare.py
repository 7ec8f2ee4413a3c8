"""The comparison as a whole: the four schemes or the user's scenarios, at one load, with what decides between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from potstill.cost.report import Savings
from potstill.cost.scenarios import Load, Pricing, ScenarioSpec, scenario_of, teacher_of
from potstill.cost.schemes import ZERO, Scenario, Scheme, evaluate, month
from potstill.cost.sensitivity import Cell, Swing, grid, swings
from potstill.wording import counted

ASSUMED_HIT_RATE = Decimal(0)
ASSUMED_ESCALATION = Decimal("0.5")


@dataclass(frozen=True)
class Mix:
    """How queries were answered: share of cache hits, share of the misses that went to Gemini, and how that is known."""

    hit_rate: Decimal
    escalation: Decimal
    origin: str


@dataclass(frozen=True)
class Comparison:
    """The schemes, the scenarios behind them, and the sensitivity of the first one that uses both, or of the last."""

    schemes: tuple[Scheme, ...]
    scenarios: tuple[Scenario, ...]
    paid: Scenario
    subject: str
    grid: tuple[Cell, ...]
    swings: tuple[Swing, ...]


def mix_of(saved: Savings, hit_rate: Decimal | None, escalation: Decimal | None) -> Mix:
    """The route mix of the traces; what is given wins, and without traces it is an assumption."""
    count = sum(saved.routes.values())
    hits = saved.routes.get("exact", 0) + saved.routes.get("semantic", 0)
    asked = saved.routes.get("teacher", 0) + saved.routes.get("merged", 0)
    known = (Decimal(hits) / count, Decimal(asked) / (count - hits) if count > hits else ZERO) if count else None
    origin = f"from {counted(count, 'trace')}" if known else "assumed, no traces yet"
    if hit_rate is not None and escalation is not None:
        origin = "given"
    elif hit_rate is not None or escalation is not None:
        origin = f"given, the rest {origin}"
    assumed = known or (ASSUMED_HIT_RATE, ASSUMED_ESCALATION)
    return Mix(assumed[0] if hit_rate is None else hit_rate, assumed[1] if escalation is None else escalation, origin)


def compare(specs: Sequence[ScenarioSpec], pricing: Pricing, load: Load) -> Comparison:
    """Evaluate the scenarios against answering everything with Gemini at the config's model and the standard price."""
    tier = pricing.config.teacher.tier
    paid_spec = ScenarioSpec(name="gemini paid", tier=tier if tier != "free" else "tier1")
    paid = Scenario("gemini paid", teacher=teacher_of(paid_spec, pricing))
    scenarios = tuple(scenario_of(spec, pricing) for spec in specs)
    subject = next((found for found in scenarios if found.machine and found.teacher), scenarios[-1])
    return Comparison(
        schemes=tuple(evaluate(scenario, load.queries, paid, load.days) for scenario in scenarios),
        scenarios=scenarios,
        paid=paid,
        subject=subject.name,
        grid=grid(subject, paid, load.queries) if subject.machine and subject.teacher else (),
        swings=swings(subject, load.queries),
    )


def cumulative(scenario: Scenario, queries_a_day: int, days: Sequence[int]) -> tuple[Decimal, ...]:
    """Dollars spent up to each day, the initial investment included: what the chart draws."""
    a_day = sum(month(scenario, queries_a_day), ZERO) / 30
    return tuple(scenario.initial_usd + a_day * day for day in days)
