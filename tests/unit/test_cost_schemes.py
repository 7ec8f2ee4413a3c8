"""Ways to answer the same queries: worked examples, and the properties of the arithmetic."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.cost.schemes import Machine, Scenario, Teacher, capacity, evaluate, hours_up, month
from potstill.cost.sensitivity import grid, swings

CALL = Decimal("0.00515")
PAID = Scenario("paid", teacher=Teacher(CALL))
OWN = Machine(seconds_per_answer=Decimal(2), watts=Decimal(350), usd_per_kwh=Decimal("0.18"))
HYBRID = Scenario("hybrid", Teacher(CALL), OWN, hit_rate=Decimal("0.4"), escalation=Decimal("0.5"))
SHARES = st.decimals(0, 1, places=3)
QUERIES = st.integers(0, 100_000)


def test_break_even_is_initial_cost_over_what_a_query_saves() -> None:
    """With $51.50 at the start and free power, local has earned it back after 10,000 queries, ten days of a thousand."""
    local = Scenario("local", machine=Machine(seconds_per_answer=Decimal(2)), initial_usd=Decimal("51.50"))
    found = evaluate(local, 1000, PAID, 365)
    assert (found.break_even_queries, found.break_even_days) == (10_000, 10)
    assert evaluate(PAID, 1000, PAID, 365).month_usd == Decimal("154.5")


def test_a_query_that_falls_back_is_paid_twice() -> None:
    """A month of the hybrid: 60 % miss, all of those use the machine, half of them Gemini as well."""
    teacher, machine = month(HYBRID, 1000)
    assert teacher == 1000 * 30 * Decimal("0.3") * CALL
    hours = Decimal(600 * 30 * 2) / 3600
    assert machine == pytest.approx(hours * Decimal("0.35") * Decimal("0.18"))


def test_a_rented_gpu_that_never_sleeps_needs_its_volume() -> None:
    """At $0.34 an hour all month, local is cheaper from 1,585 queries a day on, and not from 1,584."""
    rented = Scenario("rented", machine=Machine(seconds_per_answer=Decimal(2), usd_per_hour=Decimal("0.34")))
    found = evaluate(rented, 1000, PAID, 365)
    assert found.month_usd == Decimal("244.8")
    assert found.cheaper_from == 1585
    assert (found.break_even_days, found.capacity) == (None, 43_200)


def test_scaling_to_zero_pays_for_the_tail() -> None:
    """One query an hour with fifteen idle minutes keeps the instance up 22 % of the time, not the 0.06 % of its work."""
    machine = Machine(seconds_per_answer=Decimal(2), usd_per_hour=Decimal("1.421"), always_on=False, idle_tail_s=900)
    up = float(hours_up(machine, Decimal(24)))
    assert up / 720 == pytest.approx(0.2217, abs=1e-3)
    assert hours_up(machine, Decimal(0)) == 0
    assert float(hours_up(machine, Decimal(1_000_000))) == pytest.approx(720)


def test_the_tightest_limit_decides_the_capacity() -> None:
    """Of quota, spend limit, cap and machine the smallest counts, each at the share of queries that it sees."""
    limits = Teacher(CALL, rpm=1000, rpd=10_000, usd_per_10_min=Decimal(10), monthly_cap_usd=Decimal(250))
    assert capacity(Scenario("paid", teacher=limits)) == (1618, "the month's cap")
    assert capacity(replace(HYBRID, teacher=replace(limits, monthly_cap_usd=None))) == (33_333, "requests a day")
    assert capacity(Scenario("free", teacher=Teacher(Decimal(0)))) == (None, "not published")
    note = evaluate(Scenario("free", teacher=Teacher(Decimal(0), rpd=20)), 1000, PAID, 365).notes[0]
    assert "cannot carry 1000 queries a day (requests a day: 20)" in note


@given(SHARES, SHARES, QUERIES, st.integers(0, 1000))
def test_more_queries_and_more_escalation_never_cost_less(
    hit_rate: Decimal, escalation: Decimal, queries: int, more: int
) -> None:
    """Never negative; monotone in volume and escalation; a higher hit rate never costs more."""
    here = replace(HYBRID, hit_rate=hit_rate, escalation=escalation)
    usd = sum(month(here, queries))
    assert 0 <= usd <= sum(month(here, queries + more))
    assert usd <= sum(month(replace(here, escalation=Decimal(1)), queries))
    assert usd <= sum(month(replace(here, hit_rate=Decimal(0)), queries))


@settings(max_examples=25)
@given(st.decimals(0, 500, places=2), st.decimals("0.01", 2, places=2))
def test_cheaper_from_is_the_first_volume_that_is_cheaper(initial: Decimal, rent: Decimal) -> None:
    """At that many queries a day a month is cheaper, the investment spread over the year; at one less it is not."""
    machine = Machine(seconds_per_answer=Decimal("0.1"), usd_per_hour=rent)
    rented = Scenario("rented", machine=machine, initial_usd=initial)
    found = evaluate(rented, 1000, PAID, 365).cheaper_from
    assert found is not None
    spread = initial * 30 / 365

    def saved(queries: int) -> Decimal:
        return sum(month(PAID, queries)) - sum(month(rented, queries)) - spread

    assert saved(found) > 0 >= saved(found - 1)


def test_sensitivity_agrees_with_the_month_itself() -> None:
    """The grid at the scenario's own rates is its month, and the input that moves it most comes first."""
    cells = {(cell.hit_rate, cell.escalation): cell for cell in grid(HYBRID, PAID, 1000)}
    assert cells[Decimal("0.4"), Decimal("0.5")].month_usd == sum(month(HYBRID, 1000))
    found = swings(HYBRID, 1000)
    assert [swing.width for swing in found] == sorted((swing.width for swing in found), reverse=True)
    assert found[0].input == "queries a day"
    assert {"hit rate", "escalation", "price of a call", "watts"} <= {swing.input for swing in found}
