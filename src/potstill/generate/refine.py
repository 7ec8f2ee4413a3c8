"""The paid steps before and after the plan: growing prompts, going on with chats, marking answers, asking for reasons.

Each stands in the ledger under a name of its own (`grow`, `converse`, `judge`, `rationale`), shares limits and budget with the plan,
and is replayed from the ledger for nothing. Batch mode would wait a day between two questions of one chat: these steps
are sent as flex then, at the same price.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeVar

from potstill.config import Config, Secrets, with_values
from potstill.errors import MachineError, PartialError, PotstillError, TeacherError
from potstill.generate.ask import Failed, Outage, Progress, Report, unreachable
from potstill.generate.converse import Conversations
from potstill.generate.dataset import Extra
from potstill.generate.forms import schema_check
from potstill.generate.grow import Growth, grow, seeded, write_grown
from potstill.generate.judge import Rubric, judging
from potstill.generate.plan import Plan
from potstill.generate.rationales import Rationales
from potstill.generate.sift import Gauge, Kept, sift
from potstill.ledger import Cap, Ledger, LedgerView
from potstill.pricing.book import load_prices
from potstill.records import Sample
from potstill.teacher.calls import Answer, Asks, TeacherRequest
from potstill.teacher.line import StoppedError
from potstill.teacher.opening import open_teacher
from potstill.teacher.paid import stored_answer
from potstill.teacher.presets import check_service
from potstill.wording import counted
from potstill.workspace import Workspace

Item = TypeVar("Item")
Samples = Callable[[], Iterator[Sample]]
Ended = PotstillError | StoppedError | None


@dataclass(frozen=True)
class Place:
    """Where the steps run: config, keys and workspace, when to stop, and how many requests the run may still send.

    One `outage` for cells and steps: a teacher that was heard by either is waited for.
    """

    config: Config
    secrets: Secrets
    workspace: Workspace
    stop: asyncio.Event
    allowed: Callable[[], int | None] = lambda: None
    report: Report = lambda _: None
    outage: Outage = field(default_factory=Outage)

    @asynccontextmanager
    async def teacher(self, config: Config, command: str, cap: Cap | None = None) -> AsyncIterator[Asks]:
        """A teacher that is paid under a step's own name, within its own cap, and stops when the user does."""
        allowed, config = self.allowed(), beside(config)
        opened = open_teacher(config, self.secrets, self.workspace, command=command, max_requests=allowed, cap=cap)
        async with opened as teacher:
            watcher = asyncio.create_task(self._watch(teacher.stop))
            progress = Progress(0, time.monotonic(), step=command)
            try:
                yield _Followed(teacher, progress, self.report, self.outage, config.teacher.max_concurrency)
            finally:
                progress.total = progress.done + len(progress.failed)
                self.report(progress)
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher

    async def _watch(self, then: Callable[[], None]) -> None:
        await self.stop.wait()
        then()


@dataclass
class _Followed:
    """A teacher, with a word on how far a step is after each answer; one that is out of reach is asked no more."""

    teacher: Asks
    progress: Progress
    report: Report
    outage: Outage
    workers: int
    away: MachineError | None = None

    async def ask(self, request: TeacherRequest) -> Answer:
        """Answer one request; raises what the teacher raises, and MachineError from when no request finds it any more."""
        if self.away is not None:
            raise self.away
        try:
            answer = await self.teacher.ask(request)
        except TeacherError as error:
            failed = Failed(request.role or "", "", request.sample, error.reason, error.message)
            self.progress.failed.append(failed)
            self.report(self.progress)
            self.outage.failed(error.reason, time.monotonic())
            if self.outage.ends_run(self.workers, time.monotonic()):
                self.away = unreachable(error)
                raise self.away from error
            raise
        self.progress.count([answer])
        if not answer.reused:
            self.outage.answered()
        self.report(self.progress)
        return answer


@dataclass(frozen=True)
class Refined:
    """The plan's samples with all their turns, what samples are measured by, and what ended the steps early, if anything.

    `finish` adds to a sample that is kept what was asked for it alone.
    """

    samples: Samples
    gauge: Gauge
    finish: Callable[[Sample], Sample] = lambda sample: sample
    ended: Ended = None


def beside(config: Config) -> Config:
    """The config by which the steps are paid: what a plan asks for by batch they send as flex."""
    return with_values(config, teacher={"service": "flex"}) if config.teacher.service == "batch" else config


def check_steps(config: Config) -> None:
    """Raise, before anything is paid, for a step that could not be: InputError for its template, ConfigError, UnknownModelError."""
    generate, book, today = config.generate, load_prices(config.prices), datetime.now(UTC).date()
    makers: list[Callable[[Config], object]] = []
    makers += [Conversations] if generate.turns > 1 else []
    makers += [Rationales] if generate.rationales.enabled else []
    grows = generate.grow.target or generate.documents.files or generate.failures.file
    if makers or grows:
        check_service(book, beside(config).teacher, today)
    if generate.judge.enabled:
        makers.append(Rubric)
        check_service(book, beside(judging(config)).teacher, today)
    for make in makers:
        make(config)


def requests_left(workspace: Workspace, most: int | None) -> Callable[[], int | None]:
    """How many requests a run may still send, of `most` from now on; None: any number."""
    if most is None:
        return lambda: None
    before = _attempts(workspace)
    return lambda: max(0, most - (_attempts(workspace) - before))


def paid_beside(config: Config, workspace: Workspace) -> dict[str, Decimal]:
    """Dollars that each step of a config has cost so far, in all runs, possibly paid attempts included."""
    generate = config.generate
    asked = {
        "grow": bool(generate.grow.target or generate.documents.files),
        "failures": generate.failures.file is not None,
        "converse": generate.turns > 1,
        "judge": generate.judge.enabled,
        "rationale": generate.rationales.enabled,
    }
    with LedgerView(workspace.ledger) as view:
        return {name: view.committed_by(name) for name, is_asked in asked.items() if is_asked}


async def grow_prompts(place: Place) -> Growth | None:
    """Grow the prompts that the config asks for, and write them; None where it asks for none."""
    generate = place.config.generate
    if not generate.grow.target and not generate.documents.files:
        return None
    with seeded(place.config) as pool:
        async with place.teacher(place.config, "grow") as teacher:
            await grow(place.config, teacher, pool)
        write_grown(place.workspace, pool)
        return pool.growth()


async def refine(plan: Plan, samples: Samples, ledger: Ledger, place: Place, extra: Extra, *, pay: bool) -> Refined:
    """Go on with the chats, mark the answers and ask why they are so; without `pay`, as far as the ledger holds them already."""
    generate = plan.config.generate
    gauge = gauge_of(plan)
    ended: Ended = None

    def stored(request: TeacherRequest) -> Answer | None:
        return stored_answer(ledger, request)

    chats = samples
    if generate.turns > 1:
        conversations = Conversations(plan.config)
        if pay:
            ended = await _converse(samples, conversations, gauge, place)
        chats = lambda: (conversations.extended(sample, stored) for sample in samples())  # noqa: E731
    if generate.judge.enabled:
        rubric = Rubric(plan.config)
        if pay and ended is None:
            ended = await _mark(lambda: extra.after(chats()), rubric, gauge, place)
        gauge = replace(gauge, judged=rubric.judged(stored), min_score=generate.judge.min_score)
    if not generate.rationales.enabled:
        return Refined(chats, gauge, ended=ended)
    rationales = Rationales(plan.config)
    if pay and ended is None:
        ended = await _explain(extra.after(chats()), rationales, gauge, place)
    return Refined(chats, gauge, lambda sample: rationales.explained(sample, stored), ended)


async def _converse(samples: Samples, conversations: Conversations, gauge: Gauge, place: Place) -> Ended:
    """Ask for the further turns of all answers that are kept so far."""
    async with place.teacher(place.config, "converse") as teacher:
        return await each(
            kept(samples(), gauge),
            lambda sample: conversations.extend(sample, teacher),
            workers=place.config.teacher.max_concurrency,
            noun="chat",
            fate="could not be continued",
        )


async def _mark(samples: Samples, rubric: Rubric, gauge: Gauge, place: Place) -> Ended:
    """Have every answer marked that the other filters keep."""
    config = judging(place.config)
    most = config.generate.judge.max_usd
    cap = None if most is None else Cap("generate.judge.max_usd", most)
    async with place.teacher(config, "judge", cap) as teacher:

        async def mark(sample: Sample) -> None:
            await teacher.ask(rubric.request(sample))

        workers = config.teacher.max_concurrency
        return await each(kept(samples(), gauge), mark, workers=workers, noun="answer", fate="could not be marked")


async def _explain(samples: Iterable[Sample], rationales: Rationales, gauge: Gauge, place: Place) -> Ended:
    """Ask how the teacher came to every answer that is kept in the end, marks included."""
    async with place.teacher(place.config, "rationale") as teacher:

        async def explain(sample: Sample) -> None:
            await teacher.ask(rationales.request(sample))

        kept = (sample for sample, verdict in sift(samples, gauge) if isinstance(verdict, Kept))
        workers = place.config.teacher.max_concurrency
        return await each(kept, explain, workers=workers, noun="answer", fate="could not be explained")


async def each(
    items: Iterable[Item], work: Callable[[Item], Awaitable[None]], *, workers: int, noun: str, fate: str
) -> Ended:
    """Do some work for every item, `workers` at once; gives what ended it early, or a PartialError for what failed.

    What is in flight comes in before it returns.
    """
    shared = iter(items)
    stopped: list[PotstillError | StoppedError] = []
    failed: list[TeacherError] = []

    async def worker() -> None:
        for item in shared:
            try:
                await work(item)
            except TeacherError as error:
                failed.append(error)
            except (PotstillError, StoppedError) as error:
                stopped.append(error)
            if stopped:
                return

    await asyncio.gather(*(worker() for _ in range(workers)))
    if stopped:
        return stopped[0]
    if failed:
        message = f"{counted(len(failed), noun)} {fate}: {failed[0].message}"
        return PartialError(message, hint="run the same command again: it asks for just these")
    return None


def gauge_of(plan: Plan) -> Gauge:
    """What a plan's answers are measured by before any is marked."""
    return Gauge(plan.config.generate.filters, form=schema_check(plan.schema) if plan.schema is not None else None)


def kept(samples: Iterable[Sample], gauge: Gauge) -> Iterator[Sample]:
    """The samples that the free filters keep; which are the best is not known before they are marked."""
    return (sample for sample, verdict in sift(samples, without_best(gauge)) if isinstance(verdict, Kept))


def without_best(gauge: Gauge) -> Gauge:
    """The same, and all that pass are kept."""
    return replace(gauge, filters=gauge.filters.model_copy(update={"keep_best": None}))


def _attempts(workspace: Workspace) -> int:
    with LedgerView(workspace.ledger) as view:
        return view.attempts()
