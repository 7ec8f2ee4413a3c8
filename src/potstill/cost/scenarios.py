"""Scenarios from a YAML file, and the source design's four: turned into prices by the book and the machines' data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.config import Config
from potstill.cost.schemes import ONE, ZERO, Machine, Scenario, Teacher
from potstill.errors import UnknownModelError
from potstill.files import read_text
from potstill.pricing.book import PriceBook
from potstill.pricing.compute import Compute
from potstill.pricing.files import parse
from potstill.records import Usage, from_data


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MachineSpec(_File):
    """A machine by id of the shipped data, by its own figures, or both (own figures win)."""

    id: str | None = Field(None, description="A rented machine of `cost prices --machines`, e.g. runpod-rtx4090.")
    usd_per_hour: Decimal | None = Field(None, ge=0)
    watts: Decimal = Field(ZERO, ge=0)
    idle_watts: Decimal = Field(ZERO, ge=0)
    kwh: str | None = Field(None, description="Dollars a kWh, or a region of the shipped data.")
    pue: Decimal = Field(ONE, ge=1)
    scale: Literal["always-on", "to-zero"] = "always-on"
    idle_tail_s: int | None = Field(None, ge=0)
    seconds_per_answer: Decimal = Field(Decimal(2), gt=0)
    concurrency: int = Field(1, ge=1)


class ScenarioSpec(_File):
    """One scenario: Gemini alone (no machine), a student alone (escalation 0), or both."""

    name: str = Field(min_length=1)
    model: str | None = None
    service: Literal["standard", "flex", "batch", "priority"] = "standard"
    tier: Literal["free", "tier1", "tier2", "tier3"] | None = None
    machine: MachineSpec | None = None
    hit_rate: Decimal = Field(ZERO, ge=0, le=1)
    escalation: Decimal = Field(ONE, ge=0, le=1)
    merged_roles: int = Field(0, ge=0, description="Students' answers that the Gemini call carries as input.")
    initial_usd: Decimal = Field(ZERO, ge=0)

    @model_validator(mode="after")
    def _answers_everything(self) -> ScenarioSpec:
        if self.machine is None and self.escalation != 1:
            message = "without a machine every miss goes to Gemini: escalation must be 1"
            raise ValueError(message)
        return self


class Load(_File):
    """What all scenarios carry; None where it is not given."""

    queries_a_day: int | None = Field(None, ge=1)
    input_tokens: int | None = Field(None, ge=0)
    output_tokens: int | None = Field(None, ge=0)
    horizon_days: int | None = Field(None, ge=1)

    @classmethod
    def default(cls) -> Load:
        """The source design's query, a thousand times a day, over a year."""
        return cls(queries_a_day=1000, input_tokens=500, output_tokens=2000, horizon_days=365)

    def over(self, other: Load | None) -> Load:
        """These figures, and the other's where there are none."""
        own = {name: value for name in Load.model_fields if (value := getattr(self, name)) is not None}
        rest = {} if other is None else {name: getattr(other, name) for name in Load.model_fields}
        return Load.model_validate({**rest, **own})

    @property
    def queries(self) -> int:
        """Queries a day."""
        return self.queries_a_day or 0

    @property
    def days(self) -> int:
        """Days of the horizon."""
        return self.horizon_days or 1


class ScenarioFile(Load):
    """The user's own scenarios, and the load that all of them carry."""

    scenarios: tuple[ScenarioSpec, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Pricing:
    """What turns a specification into a scenario: prices, machines, the config, the day, and one query's tokens."""

    book: PriceBook
    compute: Compute
    config: Config
    on: date
    usage: Usage


def read_scenarios(path: Path) -> ScenarioFile:
    """The user's file; raises InputError naming file and line or field."""
    return from_data(ScenarioFile, parse(read_text(path, "scenario file"), str(path)), path)


def scenario_of(spec: ScenarioSpec, pricing: Pricing) -> Scenario:
    """Price a specification; raises UnknownModelError or InputError for what the data do not know."""
    asks = spec.machine is None or spec.escalation > 0
    return Scenario(
        name=spec.name,
        teacher=teacher_of(spec, pricing) if asks else None,
        machine=machine_of(spec.machine, pricing) if spec.machine else None,
        hit_rate=spec.hit_rate,
        escalation=spec.escalation if asks else ZERO,
        initial_usd=spec.initial_usd,
    )


def teacher_of(spec: ScenarioSpec, pricing: Pricing) -> Teacher:
    """A call's price with the limits of the tier; the config's own limits win over published ones."""
    teacher = pricing.config.teacher
    model, tier = spec.model or teacher.model, spec.tier or teacher.tier
    carried = spec.merged_roles * pricing.usage.output_tokens
    usage = pricing.usage.model_copy(update={"input_tokens": pricing.usage.input_tokens + carried})
    known, rules = pricing.book.limit(model, tier), pricing.book.tier(tier)
    own = model == teacher.model and tier == teacher.tier
    rpm, rpd = (known.rpm, known.rpd) if known else (None, None)
    if tier == "free":
        _check_free(pricing, model)
        usd = ZERO
    else:
        usd = pricing.book.cost(usage, model, spec.service, pricing.on).usd
    return Teacher(
        usd=usd,
        rpm=teacher.rpm if own and teacher.rpm is not None else rpm,
        rpd=teacher.rpd if own and teacher.rpd is not None else rpd,
        usd_per_10_min=rules.usd_per_10_min if rules else None,
        monthly_cap_usd=rules.monthly_cap_usd if rules else None,
    )


def machine_of(spec: MachineSpec, pricing: Pricing) -> Machine:
    """A machine's figures: of the shipped data by id, else the specification's own. A rent includes its electricity."""
    row = pricing.compute.gpu(spec.id) if spec.id else None
    rent = spec.usd_per_hour if spec.usd_per_hour is not None else row.usd_per_hour if row else ZERO
    tail = spec.idle_tail_s if spec.idle_tail_s is not None else (row.idle_tail_s if row else None) or 0
    return Machine(
        seconds_per_answer=spec.seconds_per_answer,
        usd_per_hour=rent,
        watts=spec.watts,
        idle_watts=spec.idle_watts,
        usd_per_kwh=kwh_price(spec.kwh, pricing) if spec.watts or spec.idle_watts else ZERO,
        pue=spec.pue,
        always_on=spec.scale == "always-on",
        idle_tail_s=tail,
        concurrency=spec.concurrency,
    )


def kwh_price(given: str | None, pricing: Pricing) -> Decimal:
    """Dollars a kWh: a number, or a region of the shipped data; left out: the stated assumption."""
    try:
        return Decimal(given) if given is not None else pricing.compute.kwh("assumed")
    except ArithmeticError:
        prices = pricing.config.prices
        return pricing.compute.kwh(str(given), currency=prices.currency, rate=prices.rate)


def four_schemes(pricing: Pricing, hybrid: Mapping[str, Any], initial_usd: Decimal) -> tuple[ScenarioSpec, ...]:
    """The source design's four; three for a model that has no free tier.

    `hybrid` has the machine, hit rate, escalation and merged roles of the last two.
    """
    tier = pricing.config.teacher.tier
    paid = tier if tier != "free" else "tier1"
    machine = hybrid["machine"]
    free = (ScenarioSpec(name="gemini free", tier="free"),) if _has_free_tier(pricing) else ()
    return (
        *free,
        ScenarioSpec(name="gemini paid", tier=paid),
        ScenarioSpec(name="hybrid", tier=paid, initial_usd=initial_usd, **hybrid),
        ScenarioSpec(name="local", machine=machine, escalation=ZERO, initial_usd=initial_usd),
    )


def _has_free_tier(pricing: Pricing) -> bool:
    """Whether the config's model may have one; a model of the user's own prices has none."""
    model = pricing.config.teacher.model
    return model not in pricing.book.overridden and pricing.book.answering(model, pricing.on).free_tier is not False


def _check_free(pricing: Pricing, model: str) -> None:
    """Raise UnknownModelError for a model that has no free tier."""
    answering = pricing.book.answering(model, pricing.on)
    if answering.free_tier is False:
        message = f"{answering.id} has no free tier"
        raise UnknownModelError(message, hint="choose another model, or a paid tier")
