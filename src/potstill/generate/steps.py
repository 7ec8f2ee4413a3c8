"""What the paid steps around a plan will come to: growing prompts, going on with chats, marking and explaining answers.

What the ledger holds costs nothing again: growing is replayed from it, and each answer that is there is taken through
the same steps as in a run. For answers still to come the requests are counted as if each were kept, at the usual length
(expected) and at the greatest (at worst). Growing asks for as many requests as it needs when no new prompt is rejected;
rejected ones make it more, up to `grow.max_rounds`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from itertools import chain, islice

from potstill.config import Config
from potstill.errors import PartialError, TeacherError
from potstill.generate import converse, grow, judge
from potstill.generate.dataset import Extra
from potstill.generate.documents import read_passages
from potstill.generate.failures import read_failures
from potstill.generate.outcomes import second_request
from potstill.generate.plan import Plan
from potstill.generate.rationales import Rationales
from potstill.generate.refine import gauge_of, kept
from potstill.generate.run import stored_samples
from potstill.generate.second_round import round_file
from potstill.generate.sift import Gauge, Kept, sift
from potstill.generate.traces import traced
from potstill.ledger import LedgerView
from potstill.pricing.book import load_prices
from potstill.pricing.intervals import ENOUGH
from potstill.pricing.tokens import estimate_tokens
from potstill.prompts import load_template
from potstill.records import Sample, Usage
from potstill.teacher.calls import Answer, TeacherRequest
from potstill.teacher.paid import stored_answer
from potstill.workspace import Workspace

SHOWN = 200
"""Prompts from which the usual length of one is taken."""
ASSUMED_SHARE = 0.5
"""Share of its token limit that an answer is taken to use while there is no history."""
HISTORY = 2000
"""Earlier answers that an expectation stands on at most."""
Lacking = tuple[str, TeacherRequest, int]
"""A step, a request that it still has to pay for, and how many like it."""
OWN = ("new_answers", "second_tries")
"""What is asked under the plan's own name and service."""


@dataclass(frozen=True)
class Step:
    """A step beside the plan: requests still to be paid for, dollars expected, and the most that they can cost."""

    name: str
    requests: int
    expected_usd: Decimal
    worst_usd: Decimal

    def __add__(self, other: Step) -> Step:
        """Both, under the name of the first."""
        expected, worst = self.expected_usd + other.expected_usd, self.worst_usd + other.worst_usd
        return Step(self.name, self.requests + other.requests, expected, worst)


def steps(plan: Plan, workspace: Workspace, unpaid: int) -> tuple[Step, ...]:
    """The steps that a config asks for, as far as they are not paid for; `unpaid`: the plan's cells without an answer."""
    with LedgerView(workspace.ledger) as ledger, traced(plan, workspace) as extra:
        counting = _Counting(plan, workspace, ledger, extra)
        (grown, prompts), (near, more) = counting.growing(), counting.failures()
        new = (prompts + more) * plan.per_prompt
        found = (grown, near, counting.new_answers(new), *counting.after(unpaid + new))
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


@dataclass(frozen=True)
class _Lengths:
    """Tokens of the usual parts of a request: a prompt and a system prompt, and an answer as expected and at most."""

    prompt: int
    system: int
    answer: int
    most: int


class _Counting:
    """Counts and prices the steps of one plan."""

    def __init__(self, plan: Plan, workspace: Workspace, ledger: LedgerView, extra: Extra) -> None:
        self._plan, self._workspace, self._ledger, self._extra = plan, workspace, ledger, extra
        self._config, self._generate = plan.config, plan.config.generate
        self._book = load_prices(plan.config.prices)
        self._means: dict[tuple[str, str], float | None] = {}

    def growing(self) -> tuple[Step, int]:
        """What growing still costs, and how many prompts the plan does not have yet."""
        generate = self._generate
        if not generate.grow.target and not generate.documents.files:
            return self._none("grow"), 0
        recorded, passages = _Recorded(self._ledger), sum(1 for _ in read_passages(generate.documents))
        try:
            with grow.seeded(self._config) as pool:
                asyncio.run(grow.grow(self._config, recorded, pool))
                prompts, requests = len(pool.grown), 0
        except PartialError:
            prompts = (generate.grow.target or 0) + passages * generate.documents.questions
            requests = max(recorded.missing, passages + _grow_requests(self._config) - recorded.found)
        path = self._workspace.grown
        here = len(path.read_bytes().splitlines()) if path.is_file() else 0
        shown = max(grow.EXAMPLES * self._lengths.prompt, generate.documents.chunk_chars if passages else 0)
        size = _tokens(self._config, "self-instruct") + shown
        return self._step("grow", requests, (size, size), grow.MAX_OUTPUT_TOKENS), max(0, prompts - here)

    def failures(self) -> tuple[Step, int]:
        """The same for the second round, which is counted whole until its prompts have grown."""
        settings, config = self._generate.failures, self._config
        found = read_failures(settings.file, self._workspace) if settings.file is not None else None
        if found is None or not found.failed or round_file(self._workspace, found).is_file():
            return self._none("failures"), 0
        requests = math.ceil(settings.target / self._generate.grow.per_request) + settings.clusters
        size = _tokens(config, "failures") + grow.EXAMPLES * self._lengths.prompt
        return self._step("failures", requests, (size, size), grow.MAX_OUTPUT_TOKENS), settings.target

    def new_answers(self, cells: int) -> Step:
        """Answers to prompts that have not grown yet: they are no cells of the plan."""
        size = self._lengths.prompt + self._lengths.system
        return self._step("new_answers", cells, (size, size), self._lengths.most)

    def after(self, to_come: int) -> Iterable[Step]:
        """Second tries, further turns, marks and rationales, of the answers that are there and of those to come."""
        there = self._of_stored()
        yield there["second_tries"] + self._second(to_come)
        yield there["converse"] + self._converse(to_come)
        template = self._generate.judge.rubric
        if self._generate.judge.enabled:
            yield there["judge"] + self._reading("judge", to_come, template, judge.MAX_OUTPUT_TOKENS)
        if (why := self._generate.rationales).enabled:
            yield there["rationale"] + self._reading("rationale", to_come, why.template, why.max_output_tokens)

    def _second(self, cells: int) -> Step:
        """With `truncated_limit`, at worst every answer is asked for again; how many will be is not known."""
        limit = self._generate.truncated_limit
        if limit is None or limit <= self._generate.max_output_tokens:
            return self._none("second_tries")
        size = self._lengths.prompt + self._lengths.system
        return Step("second_tries", cells, Decimal(0), self._step("second_tries", cells, (size, size), limit).worst_usd)

    def _converse(self, cells: int) -> Step:
        further = cells * (self._generate.turns - 1)
        template = _tokens(self._config, "follow-up")
        sizes = self._chat(template)
        played = self._step("converse", further, sizes, converse.QUESTION_TOKENS)
        return played + self._step("converse", further, self._chat(0), self._lengths.most)

    def _reading(self, name: str, cells: int, template: str, limit: int) -> Step:
        return self._step(name, cells, self._chat(_tokens(self._config, template)), limit)

    def _chat(self, template: int) -> tuple[int, int]:
        """Tokens of a whole chat with a template around it: as expected, and at most."""
        lengths, turns = self._lengths, self._generate.turns
        fixed = template + lengths.system + lengths.prompt
        return fixed + lengths.answer * turns, fixed + (lengths.most + converse.QUESTION_TOKENS) * turns

    def _of_stored(self) -> dict[str, Step]:
        """What the answers that are in the ledger still ask for, each taken as far as a run would take it."""
        found = {name: self._none(name) for name in ("second_tries", "converse", "judge", "rationale")}

        def add(lacking: Iterator[Lacking]) -> None:
            for name, request, times in lacking:
                limit = request.body["generationConfig"]["maxOutputTokens"]
                found[name] += self._step(name, times, (request.input_tokens, len(request.canonical_body)), limit)

        add(chain(self._longer(), self._turns(), self._marks()))
        gauge = gauge_of(self._plan)
        if self._generate.judge.enabled and not found["judge"].requests:
            judged = judge.Rubric(self._config).judged(self._stored)
            gauge = replace(gauge, judged=judged, min_score=self._generate.judge.min_score)
        add(self._reasons(gauge))
        return found

    def _longer(self) -> Iterator[Lacking]:
        """The second tries of the answers that were cut off."""
        for cell in self._plan if self._generate.truncated_limit is not None else ():
            first = self._stored(cell.request)
            longer = second_request(cell.request, first, self._generate) if first else None
            if longer is not None and self._stored(longer) is None:
                yield "second_tries", longer, 1

    def _turns(self) -> Iterator[Lacking]:
        """The first request that each chat lacks, as many times as it lacks any from there on."""
        if self._generate.turns == 1:
            return
        talks = converse.Conversations(self._config)
        for sample in kept(self._answered(), gauge_of(self._plan)):
            answers: list[Answer] = []
            while (request := talks.next_request(sample, answers)) is not None:
                answer = self._stored(request)
                if answer is None:
                    yield "converse", request, 2 * (self._generate.turns - 1) - len(answers)
                    break
                answers.append(answer)

    def _marks(self) -> Iterator[Lacking]:
        if not self._generate.judge.enabled:
            return
        rubric = judge.Rubric(self._config)
        requests = (rubric.request(sample) for sample in kept(self._chats(), gauge_of(self._plan)))
        yield from (("judge", request, 1) for request in requests if self._stored(request) is None)

    def _reasons(self, gauge: Gauge) -> Iterator[Lacking]:
        if not self._generate.rationales.enabled:
            return
        reasons = Rationales(self._config)
        kept_ = (sample for sample, verdict in sift(self._chats(), gauge) if isinstance(verdict, Kept))
        requests = (reasons.request(sample) for sample in kept_)
        yield from (("rationale", request, 1) for request in requests if self._stored(request) is None)

    def _chats(self) -> Iterator[Sample]:
        """All answers with the further turns that are there, then those from elsewhere."""
        chats = self._answered()
        if self._generate.turns > 1:
            talks = converse.Conversations(self._config)
            chats = (talks.extended(sample, self._stored) for sample in chats)
        return self._extra.after(chats)

    def _answered(self) -> Iterator[Sample]:
        return stored_samples(self._plan, self._ledger)

    def _stored(self, request: TeacherRequest) -> Answer | None:
        return stored_answer(self._ledger, request)

    def _step(self, name: str, requests: int, sizes: tuple[int, int], limit: int) -> Step:
        """So many requests of one size, as expected and at most, with one limit on their output."""
        config = judge.judging(self._config) if name == "judge" else self._config
        teacher, book, today = config.teacher, self._book, datetime.now(UTC).date()
        waits = name not in OWN and teacher.service == "batch"
        service = "flex" if waits else teacher.service
        output = self._usual_output(teacher.model, "generate" if name in OWN else name, limit)
        usage = Usage(input_tokens=sizes[0], output_tokens=round(output))
        worst = book.worst_case(
            teacher.model,
            service,
            today,
            input_tokens=sizes[1],
            max_output_tokens=limit,
            thinking_budget=teacher.thinking_budget,
        )
        expected = min(book.cost(usage, teacher.model, service, today).usd, worst)
        return Step(name, requests, expected * requests, worst * requests)

    def _usual_output(self, model: str, command: str, limit: int) -> float:
        """Output tokens of the answers that a command had of a model; half the limit where they are too few."""
        if (model, command) not in self._means:
            history = self._ledger.output_tokens(model, command, HISTORY)
            self._means[model, command] = sum(history) / len(history) if len(history) >= ENOUGH else None
        mean = self._means[model, command]
        return limit * ASSUMED_SHARE if mean is None else min(mean, limit)

    def _none(self, name: str) -> Step:
        return Step(name, 0, Decimal(0), Decimal(0))

    @cached_property
    def _lengths(self) -> _Lengths:
        prompts = [prompt.text for prompt in islice(self._plan.prompts, SHOWN)]
        most = self._generate.max_output_tokens
        answer = round(self._usual_output(self._config.teacher.model, "generate", most))
        return _Lengths(_longest(prompts), _longest([role.system for role in self._plan.roles]), answer, most)


def _grow_requests(config: Config) -> int:
    """Requests for `grow.target` prompts when each new one is taken."""
    settings = config.generate.grow
    each = {"self-instruct": settings.per_request, "evolve": 1, "both": (settings.per_request + 1) / 2}
    return math.ceil((settings.target or 0) / each[settings.method])


def _tokens(config: Config, template: str) -> int:
    return estimate_tokens(load_template(template, config.language))


def _longest(texts: Sequence[str]) -> int:
    """The longest of some texts, in tokens."""
    return max((estimate_tokens(text) for text in texts), default=0)
