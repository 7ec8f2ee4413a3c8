"""What a run would send, cost and take, before anything is sent. Reads the ledger where there is one; writes nothing."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

from potstill.config import Config
from potstill.generate.pieces import ASSUMED_SHARE, answers
from potstill.generate.plan import Plan
from potstill.generate.refine import check_steps
from potstill.generate.steps import Step, steps
from potstill.generate.todo import Todo, count_todo
from potstill.ledger import LedgerView
from potstill.pricing.book import PriceBook, load_prices
from potstill.pricing.finish import Finish, Rates, batch_to_finish, time_to_finish
from potstill.pricing.intervals import ENOUGH, Interval, total_interval
from potstill.records import Usage
from potstill.teacher.pacing import PaceState, effective
from potstill.teacher.paid import limits, scope
from potstill.teacher.presets import check_service
from potstill.wording import counted
from potstill.workspace import Workspace

SERVICES = ("standard", "flex", "batch")


@dataclass(frozen=True)
class Quote:
    """The run in one service: dollars expected, with the 90 % interval where there is history, and at worst; the time."""

    service: str
    expected_usd: Decimal
    low_usd: Decimal | None
    high_usd: Decimal | None
    worst_usd: Decimal
    finish: Finish


@dataclass(frozen=True)
class Forecast:
    """A run before it is made: the plan's cells in each service, and the paid steps around them.

    `left_usd` is what the budget has left, None without one; `quota_days`: days on which the daily quota is drawn on,
    None without such a quota.
    """

    todo: Todo
    basis: str
    quotes: tuple[Quote, ...]
    steps: tuple[Step, ...]
    quota_days: int | None
    left_usd: Decimal | None
    service: str

    @property
    def quote(self) -> Quote:
        """The configured service's."""
        return next(quote for quote in self.quotes if quote.service == self.service)

    @property
    def expected_usd(self) -> Decimal:
        """What the whole run is expected to cost, all steps included."""
        return self.quote.expected_usd + sum(step.expected_usd for step in self.steps)

    @property
    def low_usd(self) -> Decimal | None:
        """The lower end of the whole run's interval; None without history. All parts long or short together: the widest."""
        low = self.quote.low_usd
        return None if low is None else low + sum(step.low_usd for step in self.steps)

    @property
    def likely_usd(self) -> Decimal:
        """The upper end; where the plan's cells have none, with what they are expected to cost."""
        high = self.quote.high_usd
        return (self.quote.expected_usd if high is None else high) + sum(step.high_usd for step in self.steps)

    @property
    def worst_usd(self) -> Decimal:
        """The most that it can cost, all steps included."""
        return self.quote.worst_usd + sum(step.worst_usd for step in self.steps)

    @property
    def over_budget(self) -> bool:
        """Whether that is more than the budget has left."""
        return self.left_usd is not None and self.likely_usd > self.left_usd


def forecast(plan: Plan, workspace: Workspace) -> Forecast:
    """Count, price and time a plan; raises as `check_service` and `check_steps` do."""
    config, today = plan.config, datetime.now(UTC).date()
    teacher, book = config.teacher, load_prices(config.prices)
    check_service(book, teacher, today)
    check_steps(config)
    with LedgerView(workspace.ledger) as ledger:
        todo = count_todo(plan, ledger)
        history = [text + thinking for text, thinking in answers(ledger, config)]
        latency_s, committed = ledger.latency_s(teacher.model), ledger.committed()
        shared = ledger.shared(scope(teacher))
    output = total_interval([float(tokens) for tokens in history], todo.requests, ceiling=_most(config))
    rates = _rates(config, book, latency_s, shared)
    priced = _Pricing(config, book, today, todo, output)
    offered = book.services(teacher.model, today, teacher.tier)
    services = [name for name in SERVICES if name in offered or name == teacher.service]
    left = None if config.budget.max_usd is None else max(config.budget.max_usd - committed, Decimal(0))
    return Forecast(
        todo=todo,
        basis=_basis(history, output, todo),
        quotes=tuple(priced.quote(service, rates) for service in services),
        steps=steps(plan, workspace, todo),
        quota_days=math.ceil(todo.requests / rates.rpd) if rates.rpd else None,
        left_usd=left,
        service=teacher.service,
    )


@dataclass(frozen=True)
class _Pricing:
    config: Config
    book: PriceBook
    today: date
    todo: Todo
    output: Interval | None

    def quote(self, service: str, rates: Rates) -> Quote:
        """One service's dollars and time."""
        requests = max(1, self.todo.requests)
        if self.output is None:
            expected = self._total(service, self.config.generate.max_output_tokens * ASSUMED_SHARE)
            low = high = None
        else:
            expected = self._total(service, self.output.expected / requests)
            low = self._total(service, self.output.low / requests)
            high = self._total(service, self.output.high / requests)
        finish = (
            batch_to_finish(self.todo.input_tokens, expected, rates)
            if service == "batch"
            else time_to_finish(self.todo.requests, self.todo.input_tokens, expected, rates)
        )
        return Quote(service, expected, low, high, self._worst(service), finish)

    def _total(self, service: str, output_tokens: float) -> Decimal:
        """Dollars for all cells at so many output tokens each."""
        output = min(round(output_tokens), _most(self.config))
        model = self.config.teacher.model
        return sum(
            (
                count * self.book.cost(Usage(input_tokens=size, output_tokens=output), model, service, self.today).usd
                for size, count in self.todo.tokens.items()
            ),
            Decimal(0),
        )

    def _worst(self, service: str) -> Decimal:
        """What would be reserved if everything were in flight at once."""
        teacher = self.config.teacher
        return sum(
            (
                count
                * self.book.worst_case(
                    teacher.model,
                    service,
                    self.today,
                    input_tokens=size,
                    max_output_tokens=self.config.generate.max_output_tokens,
                    thinking_budget=teacher.thinking_budget,
                )
                for size, count in self.todo.bounds.items()
            ),
            Decimal(0),
        )


def _rates(config: Config, book: PriceBook, latency_s: float | None, shared: str | None) -> Rates:
    """The limits that hold: configured, learned from the teacher, or published for the batch queue."""
    teacher = config.teacher
    state = PaceState() if shared is None else PaceState.model_validate_json(shared)
    holding = effective(limits(teacher), state, time.time())
    tier = book.tier(teacher.tier)
    return Rates(
        rpm=holding.rpm,
        tpm=holding.tpm,
        rpd=holding.rpd,
        usd_per_10_min=teacher.usd_per_10min,
        monthly_cap_usd=tier.monthly_cap_usd if tier else None,
        enqueued_tokens=book.enqueued_tokens(teacher.model, teacher.tier),
        concurrency=teacher.max_concurrency,
        latency_s=latency_s,
    )


def _most(config: Config) -> int:
    """The most output tokens, thinking included, that the ceiling counts for one answer."""
    limit, thinking = config.generate.max_output_tokens, config.teacher.thinking_budget
    return limit + (limit if thinking is None else thinking)


def _basis(history: list[int], output: Interval | None, todo: Todo) -> str:
    if not todo.requests:
        return "nothing to ask for"
    if output is None:
        return (
            f"assumed {ASSUMED_SHARE:.0%} of max_output_tokens an answer: the ledger has {counted(len(history), 'answer')} of this"
            f" model, an interval needs {ENOUGH}; `potstill generate --pilot 20` pays for 20 of the answers and measures"
        )
    return f"{counted(output.known, 'answer')} of this model in the ledger; 90 % interval by {output.method}"
