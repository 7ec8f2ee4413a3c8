"""A config priced from end to end: what `cost estimate` shows and `cost diff` compares."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from potstill.config import Config
from potstill.cost.compare import mix_of
from potstill.cost.estimate import Assumptions, Estimate, estimate
from potstill.cost.report import report
from potstill.cost.scenarios import MachineSpec, Pricing, ScenarioSpec, kwh_price
from potstill.cost.stages import Asked, Stage, stages
from potstill.cost.training import place_of, training
from potstill.pricing.book import load_prices
from potstill.pricing.compute import load_compute
from potstill.pricing.counting import find_counter
from potstill.records import Usage
from potstill.workspace import Workspace


@dataclass(frozen=True)
class Options:
    """What the user states beside the config."""

    given: Assumptions
    judge_share: Decimal = Decimal(0)
    queries_a_day: int = 1000
    machine: str = "RTX 4090"
    kwh: str = "0.18"


@dataclass(frozen=True)
class Whole:
    """The estimate of the dataset, every stage, and the data that they were priced by."""

    estimate: Estimate
    stages: tuple[Stage, ...]
    pricing: Pricing


def price_all(config: Config, workspace: Workspace, on: date, options: Options) -> Whole:
    """Estimate every stage of a config; raises as `estimate` does, and InputError for an unknown machine."""
    book, counter = (
        load_prices(config.prices),
        find_counter(config.prices.tokenizer, config.language, config.student.base),
    )
    found = estimate(config, book, workspace, counter, on, options.given)
    query = Usage(input_tokens=found.mean_input, output_tokens=found.mean_output)
    pricing = Pricing(book, load_compute(), config, on, query)
    asked = _asked(found, pricing, workspace, options)
    return Whole(found, stages(found, config.teacher.service, pricing, asked), pricing)


def _asked(found: Estimate, pricing: Pricing, workspace: Workspace, options: Options) -> Asked:
    """The stages after generate: what is judged, trained where, and answered how."""
    config = pricing.config
    place = place_of(options.machine, kwh_price(options.kwh, pricing), pricing.compute)
    mix = mix_of(report(workspace).saved, None, None)
    tier = config.teacher.tier if config.teacher.tier != "free" else "tier1"
    hybrid = ScenarioSpec(
        name="hybrid",
        tier=tier,
        machine=MachineSpec(watts=place.card.watts, kwh=options.kwh),
        hit_rate=mix.hit_rate,
        escalation=mix.escalation,
    )
    trained = training(config, workspace, found.mean_input + found.mean_output, found.cells, place)
    return Asked(options.judge_share, trained, options.queries_a_day, mix, hybrid)
