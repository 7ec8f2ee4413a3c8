"""What a `generate` run will cost, before it is made. Reads the ledger where there is one; writes nothing.

Input tokens are estimated from the texts. Output tokens come from answers that the ledger holds for the same model: a
lognormal's mean with a 90 % interval (Cox's method; Zhou and Gao 1997, Statistics in Medicine 16), widened by the
spread of the answers to come. With fewer than `ENOUGH` answers there is an assumption and the ceiling, no interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from potstill.config import Config
from potstill.errors import UnknownModelError
from potstill.ledger import read_attempts
from potstill.pricing.book import PriceBook
from potstill.pricing.tokens import estimate_tokens
from potstill.prompts import load_prompts, load_roles
from potstill.records import Message, Usage
from potstill.teacher.calls import build_request
from potstill.workspace import Workspace

ENOUGH = 10
"""Answers from which on an interval is given."""

Z90 = 1.6449
"""Normal quantile of a two-sided 90 % interval."""

ASSUMED_SHARE = 0.5
"""Share of `max_output_tokens` that an answer is taken to use while there is no history."""

SERVICES = ("standard", "flex", "batch")


@dataclass(frozen=True)
class Work:
    """The input tokens of each answer still to be paid for, and how many answers there are in all."""

    cells: int
    input_tokens: tuple[int, ...]

    @property
    def paid(self) -> int:
        """Answers that the ledger holds already."""
        return self.cells - len(self.input_tokens)


@dataclass(frozen=True)
class Output:
    """Output tokens of one answer, thinking included; `low` and `high` bound the mean (90 %), None without history."""

    mean: float
    low: float | None
    high: float | None
    basis: str


@dataclass(frozen=True)
class Offer:
    """The run in one service, in dollars: expected, the 90 % interval where there is history, and the ceiling."""

    service: str
    expected_usd: Decimal
    low_usd: Decimal | None
    high_usd: Decimal | None
    worst_usd: Decimal


@dataclass(frozen=True)
class Estimate:
    """A run's answers, the input still to be paid for, its price in each service, and its length by the quotas."""

    cells: int
    paid: int
    input_tokens: int
    assumption: str
    services: tuple[Offer, ...]
    minutes: float | None
    days: int | None
    days_basis: str


def estimate(config: Config, book: PriceBook, workspace: Workspace, on: date) -> Estimate:
    """Estimate the configured run; raises InputError for prompts that cannot be read, UnknownModelError for no price."""
    attempts = read_attempts(workspace.ledger)
    work = count_work(config, {attempt.key for attempt in attempts if attempt.status == "done"})
    todo = len(work.input_tokens)
    history = [
        attempt.usage.output_tokens + attempt.usage.thinking_tokens
        for attempt in attempts
        if attempt.status == "done" and attempt.model == config.teacher.model and attempt.command == "generate"
    ]
    output = output_tokens(history, todo, config.generate.max_output_tokens)
    rpd, basis = daily_quota(config, book)
    rpm = config.teacher.rpm
    return Estimate(
        work.cells,
        work.paid,
        sum(work.input_tokens),
        output.basis,
        tuple(_offers(config, book, on, work, output)),
        todo / rpm if rpm else None,
        math.ceil(todo / rpd) if rpd else None,
        basis,
    )


def count_work(config: Config, done: set[str]) -> Work:
    """Every answer of the plan prompts x roles x samples, and the input tokens of those that are not paid for."""
    prompts = load_prompts(config.generate.prompts)
    roles = load_roles(config.generate.roles, config.language)
    cells, todo = 0, []
    for system in roles:
        for prompt in prompts:
            messages = (Message(role="system", content=system.system), Message(role="user", content=prompt.text))
            size = sum(estimate_tokens(message.content) for message in messages)
            keys = list(_keys(config, messages, system.name))
            cells += len(keys)
            todo += [size for key in keys if key not in done]
    return Work(cells, tuple(todo))


def output_tokens(history: Sequence[int], todo: int, max_output_tokens: int) -> Output:
    """The mean output of an answer, from earlier answers or by assumption."""
    if len(history) < ENOUGH:
        return Output(
            max_output_tokens * ASSUMED_SHARE,
            None,
            None,
            f"assumption: {ASSUMED_SHARE:.0%} of max_output_tokens (fewer than {ENOUGH} answers in the ledger)",
        )
    logs = [math.log(max(1, tokens)) for tokens in history]
    count, variance = len(logs), statistics.variance(logs)
    spread = variance / count + variance**2 / (2 * (count - 1)) + math.expm1(variance) / max(1, todo)
    student = Z90 * (1 + (Z90**2 + 1) / (4 * (count - 1)))  # Student's t by its first expansion in 1/df
    mean = statistics.fmean(history)
    ceiling = max(mean, max_output_tokens)  # no answer is longer, so no mean is, however wide the spread
    width = math.exp(min(student * math.sqrt(spread), math.log(max(1, ceiling))))
    return Output(mean, mean / width, min(mean * width, ceiling), f"{count} answers of this model in the ledger")


def daily_quota(config: Config, book: PriceBook) -> tuple[int | None, str]:
    """Requests a day and where the figure comes from: the config, else the book's row for model and tier."""
    teacher = config.teacher
    if teacher.rpd is not None:
        return teacher.rpd, "teacher.rpd"
    for limit in book.limits:
        if (limit.model, limit.tier) == (teacher.model, teacher.tier) and limit.rpd is not None:
            return limit.rpd, f"{limit.source}, {limit.as_of}"
    return None, f"no published daily limit for {teacher.model} in {teacher.tier}; set teacher.rpd from AI Studio"


def _keys(config: Config, messages: Sequence[Message], role: str) -> Iterator[str]:
    for sample in range(config.generate.samples_per_prompt):
        yield build_request(
            config.teacher,
            messages,
            temperature=config.generate.temperature,
            max_output_tokens=config.generate.max_output_tokens,
            sample=sample,
            role=role,
        ).key


def _offers(config: Config, book: PriceBook, on: date, work: Work, output: Output) -> Iterator[Offer]:
    """One offer a service; the configured one must have a price, another without one is left out."""
    for service in SERVICES:
        try:
            book.price(config.teacher.model, service, on)
        except UnknownModelError:
            if service == config.teacher.service:
                raise
            continue
        yield _offer(config, _Pricer(book, config.teacher.model, service, on), work, output)


@dataclass(frozen=True)
class _Pricer:
    book: PriceBook
    model: str
    service: str
    on: date

    def total(self, sizes: Sequence[int], output_tokens: int) -> Decimal:
        usages = (Usage(input_tokens=size, output_tokens=output_tokens) for size in sizes)
        return sum((self.book.cost(usage, self.model, self.service, self.on).usd for usage in usages), Decimal(0))


def _offer(config: Config, pricer: _Pricer, work: Work, output: Output) -> Offer:
    most = _most(config)

    def total(tokens: float | None) -> Decimal | None:
        return None if tokens is None else pricer.total(work.input_tokens, min(round(tokens), most))

    worst = sum(
        (
            pricer.book.worst_case(
                pricer.model,
                pricer.service,
                pricer.on,
                input_tokens=size,
                max_output_tokens=config.generate.max_output_tokens,
                thinking_budget=config.teacher.thinking_budget,
            )
            for size in work.input_tokens
        ),
        Decimal(0),
    )
    expected = pricer.total(work.input_tokens, min(round(output.mean), most))
    return Offer(pricer.service, expected, total(output.low), total(output.high), worst)


def _most(config: Config) -> int:
    """The most output tokens, thinking included, that the ceiling counts for one answer."""
    limit, thinking = config.generate.max_output_tokens, config.teacher.thinking_budget
    return limit + (limit if thinking is None else thinking)
