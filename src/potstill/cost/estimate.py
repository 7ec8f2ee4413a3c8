"""What a `generate` run will cost, before it is made, and how long the limits make it take. Reads; writes nothing.

Expected, 90 % interval and ceiling stand side by side. The interval joins the doubt about the answers' length with the
doubt about the inputs' count, in quadrature; without history there is none, only a named assumption and the ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

from potstill.config import Config
from potstill.cost.outputs import Outputs, Scale, expect_outputs, input_scale, ledger_history, pilot_history
from potstill.cost.work import Work, count_work
from potstill.errors import UnknownModelError
from potstill.ledger import paid_work
from potstill.pricing.book import PriceBook
from potstill.pricing.changes import AHEAD, Change, changes
from potstill.pricing.counting import Counter
from potstill.pricing.finish import Finish, Rates, batch_to_finish, time_to_finish
from potstill.records import Usage
from potstill.workspace import Workspace

SERVICES = ("standard", "flex", "batch")
ZERO = Decimal(0)


@dataclass(frozen=True)
class Assumptions:
    """What the user states: a pilot's file, output tokens an answer, seconds of an answer."""

    pilot: Path | None = None
    output_tokens: int | None = None
    latency_s: float | None = None


@dataclass(frozen=True)
class Offer:
    """The run in one service, in dollars: expected, 90 % interval where there is history, ceiling; and its length."""

    service: str
    expected_usd: Decimal
    low_usd: Decimal | None
    high_usd: Decimal | None
    worst_usd: Decimal
    finish: Finish


@dataclass(frozen=True)
class Estimate:
    """A run's answers, the tokens still to be paid for, its price in each service, and what changes meanwhile.

    `mean_input` and `mean_output`: tokens of one question with its role, and of one answer, paid for or still to be.
    """

    cells: int
    paid: int
    todo: int
    input_tokens: int
    output_tokens: int
    output_by_role: dict[str, float]
    mean_input: int
    mean_output: int
    counted: str
    assumption: str
    services: tuple[Offer, ...]
    rates: Rates
    rates_basis: str
    ahead: tuple[Change, ...]

    def offer(self, service: str) -> Offer:
        """The price in one service."""
        return next(offer for offer in self.services if offer.service == service)


@dataclass(frozen=True)
class _Run:
    """What every service is priced from."""

    config: Config
    book: PriceBook
    on: date
    work: Work
    outputs: Outputs
    scale: Scale
    rates: Rates


def estimate(
    config: Config, book: PriceBook, workspace: Workspace, counter: Counter, on: date, given: Assumptions
) -> Estimate:
    """Estimate the configured run; raises InputError for prompts that cannot be read, UnknownModelError for no price."""
    with paid_work(workspace.ledger) as paid:
        work = count_work(config, counter, paid)
        ledger = ledger_history(paid, config.teacher.model, "generate")
    history = pilot_history(given.pilot, config.teacher.model, counter) if given.pilot else ledger
    scale = input_scale((*work.billed, *history.billed), counter)
    outputs = expect_outputs(history, work.by_role(), most_output(config), given.output_tokens)
    rates, basis = rates_of(config, book, given.latency_s)
    offers = tuple(_offers(_Run(config, book, on, work, outputs, scale, rates)))
    longest = max((offer.finish.seconds for offer in offers), default=0.0)
    models = frozenset({book.model(config.teacher.model).id}) if config.teacher.model not in book.overridden else None
    return Estimate(
        cells=work.cells,
        paid=work.paid,
        todo=work.todo,
        input_tokens=round(work.input_tokens * scale.factor),
        output_tokens=round(outputs.expected),
        output_by_role=dict(outputs.mean_by_role),
        mean_input=_mean_input(work, scale),
        mean_output=round(outputs.expected / work.todo) if work.todo else _mean(history.lengths),
        counted=scale.basis,
        assumption=outputs.basis,
        services=offers,
        rates=rates,
        rates_basis=basis,
        ahead=changes(book, on, on + max(AHEAD, timedelta(seconds=longest)), models) if models else (),
    )


def most_output(config: Config) -> int:
    """The most output tokens, thinking included, that the ceiling counts for one answer."""
    limit, thinking = config.generate.max_output_tokens, config.teacher.thinking_budget
    return limit + (limit if thinking is None else thinking)


def rates_of(config: Config, book: PriceBook, latency_s: float | None) -> tuple[Rates, str]:
    """What holds the run back: the config's limits, published ones where it has none, and the tier's spend limits."""
    teacher = config.teacher
    known, tier = book.limit(teacher.model, teacher.tier), book.tier(teacher.tier)
    rates = Rates(
        rpm=teacher.rpm or (known.rpm if known else None),
        tpm=teacher.tpm or (known.tpm_input if known else None),
        rpd=teacher.rpd or (known.rpd if known else None),
        usd_per_10_min=teacher.usd_per_10min or (tier.usd_per_10_min if tier else None),
        monthly_cap_usd=tier.monthly_cap_usd if tier else None,
        enqueued_tokens=book.enqueued_tokens(teacher.model, teacher.tier),
        concurrency=teacher.max_concurrency if latency_s is not None else None,
        latency_s=latency_s,
    )
    own = [name for name in ("rpm", "tpm", "rpd") if getattr(teacher, name) is not None]
    published = f"the rest from {known.source}, {known.as_of}" if known else "the rest is published nowhere"
    return rates, f"config: {', '.join(own) or 'none'}; {published}; spend limits of {teacher.tier}"


def _mean_input(work: Work, scale: Scale) -> int:
    if work.todo:
        return round(work.input_tokens * scale.factor / work.todo)
    return _mean([billed for _, billed in work.billed])


def _mean(values: Sequence[int]) -> int:
    return round(sum(values) / len(values)) if values else 0


def _offers(run: _Run) -> Iterator[Offer]:
    """One offer a service; the configured one must have a price, another without one is left out."""
    for service in SERVICES:
        try:
            run.book.price(run.config.teacher.model, service, run.on)
        except UnknownModelError:
            if service == run.config.teacher.service:
                raise
            continue
        if run.config.teacher.tier == "free" and service != run.config.teacher.service:
            continue  # the free tier has no batch, and no source says that it has flex
        yield _offer(run, service)


def _offer(run: _Run, service: str) -> Offer:
    scale, outputs = run.scale, run.outputs
    inputs, answers = _input_usd(run, service), _output_usd(run, service)
    expected = inputs + answers
    free = run.config.teacher.tier == "free"
    low = high = None
    if outputs.low is not None and outputs.high is not None and outputs.expected:
        below = _side(answers, outputs.expected, outputs.low, inputs, scale.below)
        above = _side(answers, outputs.expected, outputs.high, inputs, scale.above)
        low, high = max(ZERO, expected - below), expected + above
    worst = sum((_worst_usd(run, service, group.input_tokens) * group.count for group in run.work.groups), ZERO)
    finish = _finish(run, service, ZERO if free else expected)
    if free:  # nothing is charged within its quota; the ceiling stays what the ledger's budget holds
        return Offer(service, ZERO, None if low is None else ZERO, None if high is None else ZERO, worst, finish)
    high = None if high is None else min(high, max(worst, expected))
    return Offer(service, expected, low, high, worst, finish)


def _side(answers: Decimal, expected: float, end: float, inputs: Decimal, error: float) -> Decimal:
    """How far one end of the interval lies from the middle: output and input doubts, in quadrature."""
    output = answers * abs(_decimal(end / expected) - 1)
    return (output**2 + (inputs * _decimal(error)) ** 2).sqrt()


def _input_usd(run: _Run, service: str) -> Decimal:
    usd = ZERO
    for group in run.work.groups:
        tokens = round(group.input_tokens * run.scale.factor)
        usd += run.book.cost(Usage(input_tokens=tokens), run.config.teacher.model, service, run.on).usd * group.count
    return usd


def _output_usd(run: _Run, service: str) -> Decimal:
    """Output at the price of each prompt's tier."""
    usd = ZERO
    for group in run.work.groups:
        price = run.book.price(run.config.teacher.model, service, run.on, group.input_tokens)
        mean = _decimal(min(run.outputs.mean_by_role[group.role], most_output(run.config)))
        usd += mean * (price.output or ZERO) / 1_000_000 * group.count
    return usd


def _worst_usd(run: _Run, service: str, input_tokens: int) -> Decimal:
    """The ceiling of one answer: no answer passes its limit; the input may be longer than it was counted."""
    return run.book.worst_case(
        run.config.teacher.model,
        service,
        run.on,
        input_tokens=math.ceil(input_tokens * run.scale.factor * (1 + run.scale.above)),
        max_output_tokens=run.config.generate.max_output_tokens,
        thinking_budget=run.config.teacher.thinking_budget,
    )


def _finish(run: _Run, service: str, usd: Decimal) -> Finish:
    tokens = round(run.work.input_tokens * run.scale.factor)
    if service == "batch":
        hours = run.book.data.batch.target_hours if run.book.data.batch else 24
        return batch_to_finish(tokens, usd, run.rates, hours)
    return time_to_finish(run.work.todo, tokens, usd, run.rates)


def _decimal(value: float) -> Decimal:
    return Decimal(repr(round(value, 9)))
