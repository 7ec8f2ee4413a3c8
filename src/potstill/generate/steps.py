"""What the paid steps around a plan will come to: growing prompts, going on with chats, marking and explaining answers.

What the ledger holds costs nothing again: growing is replayed from it, and each answer that is there is taken through
the same steps as in a run. For answers still to come a step is expected to cost what it did for those that are through
with it, rejected ones included, once there are enough of these, as after a pilot; until then what its requests cost at
their usual lengths, were each answer kept. At worst each is kept, and every request as long as it can be. Growing asks
for as many requests as it needs when no new prompt is rejected; rejected ones make it more, up to `grow.max_rounds`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from potstill.config import Config
from potstill.errors import PartialError, TeacherError
from potstill.generate import grow
from potstill.generate.documents import read_passages
from potstill.generate.failures import read_failures
from potstill.generate.pieces import HISTORY, Lengths, Piece, Prices
from potstill.generate.plan import Plan
from potstill.generate.second_round import round_file
from potstill.generate.stored import Stored, Visit
from potstill.generate.todo import Todo
from potstill.generate.traces import traced
from potstill.ledger import LedgerView
from potstill.pricing.intervals import total_interval
from potstill.pricing.tokens import estimate_tokens
from potstill.teacher.calls import Answer, TeacherRequest
from potstill.teacher.paid import stored_answer
from potstill.workspace import Workspace

ZERO = Decimal(0)
SHOWN_BY = {"self-instruct": grow.EXAMPLES, "evolve": 1, "both": (grow.EXAMPLES + 1) / 2}
"""Prompts that a request for new ones shows."""


@dataclass(frozen=True)
class Step:
    """A step beside the plan: requests still to be paid for, dollars expected, and the most that they can cost.

    `low_usd` and `high_usd` bound the expectation's 90 % interval; without measurements they are the expectation itself.
    """

    name: str
    requests: int = 0
    expected_usd: Decimal = ZERO
    low_usd: Decimal = ZERO
    high_usd: Decimal = ZERO
    worst_usd: Decimal = ZERO

    def __add__(self, other: Step) -> Step:
        """Both, under the name of the first."""
        return Step(
            self.name,
            self.requests + other.requests,
            self.expected_usd + other.expected_usd,
            self.low_usd + other.low_usd,
            self.high_usd + other.high_usd,
            self.worst_usd + other.worst_usd,
        )

    def within(self, low: float, high: float) -> Step:
        """The same with an interval, whose ends are given as shares of the expectation."""
        ends = [min(self.expected_usd * _dollars(share), self.worst_usd) for share in (low, high)]
        return replace(self, low_usd=ends[0], high_usd=ends[1])


def steps(plan: Plan, workspace: Workspace, todo: Todo) -> tuple[Step, ...]:
    """The steps that a config asks for, as far as they are not paid for; `todo`: the plan's cells without an answer."""
    with LedgerView(workspace.ledger) as ledger, traced(plan, workspace) as extra:
        prices = Prices(plan.config)
        lengths = Lengths(plan, ledger, todo, prices)
        growing = _Growing(plan, workspace, ledger, lengths, prices)
        (grown, prompts), (near, more) = growing.growing(), growing.failures()
        new = (prompts + more) * plan.per_prompt
        bases = Counter(todo.bounds) + Counter({lengths.longest_new: new})
        ahead = _Ahead(plan, prices, lengths, bases)
        found = (grown, near, ahead.new_answers(new), *ahead.after(Stored(plan, ledger, extra, lengths)))
    return tuple(step for step in found if step.requests)


class _Recorded:
    """A teacher that answers from the ledger and counts what is not there."""

    def __init__(self, ledger: LedgerView) -> None:
        self._ledger = ledger
        self.found = self.missing = 0

    async def ask(self, request: TeacherRequest) -> Answer:
        answer = stored_answer(self._ledger, request)
        if answer is None:
            self.missing += 1
            message = "not paid for yet"
            raise TeacherError(message, reason="planned")
        self.found += 1
        return answer


class _Growing:
    """Counts and prices what makes new prompts."""

    def __init__(self, plan: Plan, workspace: Workspace, ledger: LedgerView, lengths: Lengths, prices: Prices) -> None:
        self._config, self._generate = plan.config, plan.config.generate
        self._workspace, self._ledger, self._lengths, self._prices = workspace, ledger, lengths, prices

    def growing(self) -> tuple[Step, int]:
        """What growing still costs, and how many prompts the plan does not have yet."""
        generate = self._generate
        if not generate.grow.target and not generate.documents.files:
            return Step("grow"), 0
        sizes = [estimate_tokens(found.text) for found in read_passages(generate.documents)]
        recorded, passages, rounds = _Recorded(self._ledger), len(sizes), _grow_requests(self._config)
        try:
            with grow.seeded(self._config) as pool:
                asyncio.run(grow.grow(self._config, recorded, pool))
                prompts, requests = len(pool.grown), 0
        except PartialError:
            prompts = (generate.grow.target or 0) + passages * generate.documents.questions
            requests = max(recorded.missing, passages + rounds - recorded.found)
        path = self._workspace.grown
        here = len(path.read_bytes().splitlines()) if path.is_file() else 0
        shown = sum(sizes) + rounds * SHOWN_BY[generate.grow.method] * self._lengths.prompt
        every = max(1, passages + rounds)
        piece = self._lengths.new_prompts("self-instruct", prompts / every, shown / every)
        return _priced("grow", requests, piece, self._prices), max(0, prompts - here)

    def failures(self) -> tuple[Step, int]:
        """The same for the second round, which is counted whole until its prompts have grown."""
        settings = self._generate.failures
        found = read_failures(settings.file, self._workspace) if settings.file is not None else None
        if found is None or not found.failed or round_file(self._workspace, found).is_file():
            return Step("failures"), 0
        requests = math.ceil(settings.target / self._generate.grow.per_request) + settings.clusters
        shown = grow.EXAMPLES * self._lengths.prompt
        piece = self._lengths.new_prompts("failures", settings.target / requests, shown)
        return _priced("failures", requests, piece, self._prices), settings.target


class _Ahead:
    """What the answers still to come will ask for; `bases`: how many there are by the bytes of their own requests."""

    def __init__(self, plan: Plan, prices: Prices, lengths: Lengths, bases: Mapping[int, int]) -> None:
        self._generate, self._prices, self._lengths, self._bases = plan.config.generate, prices, lengths, bases
        self._cells = sum(bases.values())

    def new_answers(self, cells: int) -> Step:
        """Answers to prompts that have not grown yet: they are no cells of the plan."""
        if not cells:
            return Step("new_answers")
        usual, short, long = self._lengths.first(cells)
        base = self._lengths.longest_new
        step = _priced("new_answers", cells, usual, self._prices, base)
        low, high = (_priced("", cells, piece, self._prices, base).expected_usd for piece in (short, long))
        return replace(step, low_usd=low, high_usd=high)

    def after(self, stored: Stored) -> Iterator[Step]:
        """Second tries, further turns, marks and rationales, of the answers that are there and of those to come."""
        pieces = self._lengths.steps()
        tallies = {name: _Tally(name, self._prices) for name in pieces}
        for name, visit in stored.visits(tallies):
            tallies[name].add(visit)
        for name, tally in tallies.items():
            yield tally.found() + self._to_come(name, tally, pieces[name])

    def _to_come(self, name: str, tally: _Tally, pieces: Sequence[Piece]) -> Step:
        """The same of the answers to come. What happened to none of n may happen to 3 in n (rule of three; Hanley 1983)."""
        requests = self._cells * len(pieces)
        every = sum((self._prices.expected(name, piece) for piece in pieces), ZERO)
        worst = sum(
            (count * self._prices.worst(name, piece, base) for base, count in self._bases.items() for piece in pieces),
            ZERO,
        )
        found = total_interval(tally.costs, self._cells)
        if found is None:
            usd = min(every * self._cells * _dollars(self._assumed_share(name)), worst)
            return Step(name, requests, usd, usd, usd, worst)
        if not tally.share:
            unseen = _dollars(min(1.0, 3 / len(tally.costs)))
            return Step(name, requests, ZERO, ZERO, min(unseen * every * self._cells, worst), worst)
        fewer = min(1.0, self._best_share(name) / tally.share)
        usd, low, high = (min(_dollars(value * fewer), worst) for value in (found.expected, found.low, found.high))
        return Step(name, requests, usd, low, high, worst)

    def _assumed_share(self, name: str) -> float:
        """Share of the answers that a step is taken to be paid for while it is not measured."""
        return 0.0 if name == "second_tries" else self._best_share(name)

    def _best_share(self, name: str) -> float:
        """Share of the answers that it can be paid for: reasons are asked for the best alone."""
        best = self._generate.filters.keep_best
        return 1.0 if name != "rationale" or best is None else min(1.0, best / self._generate.samples_per_prompt)


class _Tally:
    """What a step cost for each answer that it is through with, at today's prices, and what it lacks for the others.

    Of very many answers it holds some, drawn at random (reservoir sampling; Vitter 1985, algorithm R).
    """

    def __init__(self, name: str, prices: Prices) -> None:
        self._name, self._prices = name, prices
        self._lacking = Step(name)
        self._through = 0
        self._draw = random.Random(0)  # noqa: S311  (statistics)
        self.costs: list[float] = []

    def add(self, visit: Visit) -> None:
        """Take note of one answer."""
        for piece in visit.lacking:
            self._lacking += _priced(self._name, 1, piece, self._prices)
        if visit.lacking:
            return
        usd = float(sum(self._prices.of(self._name, usage) for usage in visit.paid))
        self._through += 1
        if len(self.costs) < HISTORY:
            self.costs.append(usd)
        elif (place := self._draw.randrange(self._through)) < HISTORY:
            self.costs[place] = usd

    def found(self) -> Step:
        """What the answers that are there still ask for."""
        spread = total_interval(self.costs, self._lacking.requests)
        if spread is None or not spread.expected:
            return self._lacking
        return self._lacking.within(spread.low / spread.expected, spread.high / spread.expected)

    @property
    def share(self) -> float:
        """Share of the answers that it was paid for."""
        return sum(usd > 0 for usd in self.costs) / len(self.costs) if self.costs else 0.0


def _priced(name: str, requests: int, piece: Piece, prices: Prices, base: int = 0) -> Step:
    """So many requests of one kind; `base`: what the bound of its input lacks."""
    worst = prices.worst(name, piece, base)
    usd = min(prices.expected(name, piece), worst) * requests
    return Step(name, requests, usd, usd, usd, worst * requests)


def _dollars(value: float) -> Decimal:
    """To the billionth."""
    return Decimal(repr(round(value, 9)))


def _grow_requests(config: Config) -> int:
    """Requests for `grow.target` prompts when each new one is taken."""
    settings = config.generate.grow
    each = {"self-instruct": settings.per_request, "evolve": 1, "both": (settings.per_request + 1) / 2}
    return math.ceil((settings.target or 0) / each[settings.method])
