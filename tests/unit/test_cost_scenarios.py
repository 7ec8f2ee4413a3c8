"""Scenarios of the user's own, and the source design's four, priced by book and machine data."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from potstill.config import Config, with_values
from potstill.cost.compare import compare, mix_of
from potstill.cost.report import Savings
from potstill.cost.scenarios import Load, MachineSpec, Pricing, four_schemes, read_scenarios, scenario_of
from potstill.errors import InputError, UnknownModelError
from potstill.pricing.book import load_prices
from potstill.pricing.compute import load_compute
from potstill.records import Usage

OWN = """
queries_a_day: 5000
scenarios:
  - {name: all Gemini, tier: tier2}
  - name: rented 4090
    machine: {id: runpod-rtx4090, seconds_per_answer: 1.5, concurrency: 8}
    escalation: 0
    initial_usd: 12.50
  - name: Cloud Run and Gemini
    machine: {id: cloud-run-l4, scale: to-zero}
    hit_rate: 0.35
    escalation: 0.2
    merged_roles: 2
"""


def pricing(**teacher: object) -> Pricing:
    """The shipped data on one day, for the source design's query."""
    config = with_values(Config(), teacher=teacher)
    usage = Usage(input_tokens=500, output_tokens=2000)
    return Pricing(load_prices(config.prices), load_compute(), config, date(2026, 11, 24), usage)


def test_own_scenarios_take_rents_and_tails_from_the_data(tmp_path: Path) -> None:
    """A machine by id has its rent and idle tail; a merged call carries the students' answers as input."""
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    file, found = read_scenarios(path), pricing()
    gemini, rented, cloud = (scenario_of(spec, found) for spec in file.scenarios)
    assert gemini.teacher is not None
    assert gemini.teacher.monthly_cap_usd == Decimal(2000)
    assert rented.teacher is None
    assert rented.machine is not None
    assert (rented.machine.usd_per_hour, rented.machine.concurrency) == (Decimal("0.34"), 8)
    assert cloud.machine is not None
    assert cloud.teacher is not None
    assert (cloud.machine.idle_tail_s, cloud.machine.always_on) == (900, False)
    assert cloud.teacher.usd == (4500 * Decimal("0.3") + 2000 * Decimal("2.5")) / 1_000_000
    result = compare(file.scenarios, found, file.over(Load.default()))
    assert [scheme.name for scheme in result.schemes] == ["all Gemini", "rented 4090", "Cloud Run and Gemini"]
    assert result.subject == "Cloud Run and Gemini"


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("scenarios: []", "scenarios"),
        ("scenarios:\n - name: x\n   escalation: 0.5", "escalation must be 1"),
        ("scenarios:\n - {name: x, hit_rate: 1.2}", "hit_rate"),
        ("scenarios:\n - {name: x, machine: {wats: 3}}", "wats"),
        ("scenarios: [", ":1"),
    ],
)
def test_a_bad_scenario_file_names_its_place(tmp_path: Path, text: str, needle: str) -> None:
    """Empty lists, impossible shares, misspelt keys and broken YAML end in an error with file and field."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_scenarios(path)
    assert caught.value.message.startswith(f"{path}:")
    assert needle in caught.value.message


def test_unknown_machines_models_and_rates_are_refused() -> None:
    """A misspelt machine names its neighbour; Taiwan's tariff needs a rate; a paid-only model has no free scheme."""
    found = pricing()
    with pytest.raises(InputError) as caught:
        found.compute.gpu("runpod-rtx4O90")
    assert "runpod-rtx4090" in (caught.value.hint or "")
    with pytest.raises(InputError, match="rate"):
        found.compute.kwh("taiwan-residential")
    assert found.compute.kwh("taiwan-residential", currency="TWD", rate=Decimal(32)) == Decimal("2.77") / 32
    machine = MachineSpec(watts=Decimal(350))
    shares = {"machine": machine, "hit_rate": Decimal(0), "escalation": Decimal(1), "merged_roles": 0}
    free = four_schemes(found, shares, Decimal(0))[0]
    with pytest.raises(UnknownModelError, match="no free tier"):
        scenario_of(free, pricing(model="gemini-4-argon"))


def test_the_route_mix_comes_from_traces_unless_it_is_given() -> None:
    """Hits over all, escalations over the misses; what is given wins, and the origin says which it was."""
    saved = Savings({"exact": 1, "semantic": 3, "student": 4, "merged": 2}, Decimal(1), Decimal(2), {})
    known = mix_of(saved, None, None)
    assert (known.hit_rate, known.escalation, known.origin) == (
        Decimal("0.4"),
        Decimal(2) / Decimal(6),
        "from 10 traces",
    )
    assert mix_of(saved, Decimal("0.9"), None).hit_rate == Decimal("0.9")
    assert mix_of(Savings({"exact": 1}, Decimal(1), Decimal(2), {}), None, None).origin == "from 1 trace"
    assert "assumed" in mix_of(Savings({}, Decimal(0), Decimal(0), {}), None, None).origin
