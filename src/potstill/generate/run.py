"""The whole stage: plan -> ask -> sift -> dataset."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal

from potstill.config import Config, GenerateConfig, Secrets
from potstill.errors import PotstillError, UsageError
from potstill.generate.alone import alone
from potstill.generate.ask import Asking, Failed, Outage, Progress, Report, ask_all
from potstill.generate.batching import Rounds
from potstill.generate.dataset import Extra, sample_of, write_dataset
from potstill.generate.failures import Encode
from potstill.generate.figures import DatasetManifest
from potstill.generate.frontier import Frontier
from potstill.generate.grow import Growth
from potstill.generate.outcomes import both, second_request
from potstill.generate.plan import Cell, Plan
from potstill.generate.publish import Published, publish
from potstill.generate.refine import Place, check_steps, grow_prompts, paid_beside, refine, requests_left
from potstill.generate.second_round import SecondRound, grow_near_failures
from potstill.generate.traces import traced
from potstill.ledger import Ledger, LedgerView, PlanProgress
from potstill.prompts import load_roles, load_schema, prompt_files
from potstill.records import Attempt, Sample
from potstill.teacher.batch import Batcher
from potstill.teacher.connect import check_client
from potstill.teacher.line import StoppedError
from potstill.teacher.opening import OfflineTeacher, open_batcher, open_offline, open_teacher
from potstill.teacher.paid import PaidTeacher, stored_answer
from potstill.wording import counted
from potstill.workspace import Workspace

Teacher = PaidTeacher | OfflineTeacher | Batcher

SAVE_EVERY = 500
"""Cells after which it is written down how far the plan is."""


@dataclass(frozen=True)
class Terms:
    """How a run is to be made, beside its config.

    `stop`: set it, and what is in flight is the last; `offline`: from the ledger alone; `max_requests`: attempts that
    this run may send; `pilot`: pay for so many cells, spread over the plan, and the steps around them, and write no dataset; `cancel_batches`:
    cancel the batch jobs of earlier runs instead of asking for anything; `encode` tells a student's failures apart;
    `say` gets a word for the user.
    """

    report: Report
    stop: asyncio.Event
    offline: bool = False
    max_requests: int | None = None
    pilot: int | None = None
    cancel_batches: bool = False
    encode: Encode | None = None
    say: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `stopped` is the error that ended it early; the dataset then holds what there is.

    `manifest` is None where no dataset was written: by a pilot, a run that the user stopped, one that has no answer at all.
    """

    manifest: DatasetManifest | None
    progress: Progress
    possibly_paid: tuple[Attempt, ...]
    stopped: PotstillError | StoppedError | None
    published: Published = field(default_factory=Published)
    grown: Growth | None = None
    beside_usd: Mapping[str, Decimal] = field(default_factory=dict)
    second_round: SecondRound | None = None

    @property
    def failed(self) -> tuple[Failed, ...]:
        """Cells without an answer."""
        return tuple(self.progress.failed)

    @property
    def spent_usd(self) -> Decimal:
        """Dollars paid in this run for the answers that it got."""
        return self.progress.spent_usd


def load_plan(config: Config) -> Plan:
    """The plan of a config; raises InputError for a bad prompt or role file, ConfigError for an impossible teacher."""
    check_client(config.teacher)
    roles = load_roles(config.generate.roles, config.language)
    return Plan(config, prompt_files(config), roles, load_schema(config.generate.answer_schema))


async def generate(config: Config, secrets: Secrets, workspace: Workspace, terms: Terms) -> Outcome:
    """Get every answer of the plan that is not in the ledger yet, then write the dataset from all of them.

    Another paying run in the workspace is waited for.
    """
    pays = not terms.offline and not terms.cancel_batches
    async with alone(workspace.generating, terms.stop, terms.say) if pays else nullcontext():
        return await _generate(config, secrets, workspace, terms)


async def _generate(config: Config, secrets: Secrets, workspace: Workspace, terms: Terms) -> Outcome:
    place = Place(config, secrets, workspace, terms.stop, requests_left(workspace, terms.max_requests), terms.report)
    pays = not terms.offline and not terms.cancel_batches
    prepares = pays and terms.pilot is None
    if pays:
        load_plan(config)
        check_steps(config)
    growth = await grow_prompts(place) if prepares else None
    second = await grow_near_failures(place, terms.encode) if prepares and terms.encode is not None else None
    plan = load_plan(config)
    async with _teacher(plan, secrets, workspace, replace(terms, max_requests=place.allowed())) as teacher:
        start = _start(plan, teacher.ledger)
        progress, stopped = await _ask(plan, teacher, start, terms, place.outage)
        manifest, published = None, Published()
        has_some = progress.done > 0 or progress.total == 0 or config.generate.from_traces
        ledger, pay = teacher.ledger, stopped is None and pays
        if terms.pilot is not None:
            stopped = await _pilot_steps(plan, terms.pilot, ledger, place) if pay else stopped
        elif has_some and not isinstance(stopped, StoppedError):
            with traced(plan, workspace, terms.say) as extra:
                samples = lambda: stored_samples(plan, config.generate, ledger)  # noqa: E731
                refined = await refine(plan, samples, ledger, place, extra, pay=pay)
                manifest = await asyncio.to_thread(
                    write_dataset, workspace, plan, refined.samples(), refined.gauge, extra, refined.finish
                )
            stopped = stopped or refined.ended
            published = await asyncio.to_thread(publish, config, secrets, workspace)
        waiting = tuple(teacher.ledger.open_attempts())
        beside = paid_beside(config, workspace)
        ended = stopped or published.error or (second.ended if second is not None else None)
        return Outcome(manifest, progress, waiting, ended, published, growth, beside, second)


async def _pilot_steps(plan: Plan, count: int, ledger: Ledger, place: Place) -> PotstillError | StoppedError | None:
    """Pay for the steps around a pilot's cells, so that these are measured too; gives what ended it early."""

    def samples() -> Iterator[Sample]:
        cells = (cell for _, cell in plan.cells(len(plan), pilot_cells(plan, count)))
        return stored_samples(cells, plan.config.generate, ledger)

    return (await refine(plan, samples, ledger, place, Extra(), pay=True)).ended


def stored_samples(cells: Iterable[Cell], settings: GenerateConfig, ledger: Ledger | LedgerView) -> Iterator[Sample]:
    """One sample per answered cell, in their order, from the ledger: the same ledger gives the same bytes."""
    for cell in cells:
        answer = stored_answer(ledger, cell.request)
        if answer is None:
            continue
        longer = second_request(cell.request, answer, settings)
        second = stored_answer(ledger, longer) if longer is not None else None
        if second is not None:
            answer = both(answer, second)
        yield sample_of(cell, answer, created_at=answer.answered_at)


def pilot_cells(plan: Plan, count: int) -> list[int]:
    """Positions of some cells, spread evenly over the plan and, in turn, over roles and samples. Pure."""
    total, block = len(plan), plan.per_prompt
    if count * block >= total:
        return [index * total // count for index in range(count)] if count < total else list(range(total))
    starts = [index * total // count // block * block for index in range(count)]
    return [start + index % block for index, start in enumerate(starts)]


def _start(plan: Plan, ledger: Ledger) -> PlanProgress:
    """Where earlier runs of this plan stopped; the number of its cells is counted once and then remembered."""
    known = ledger.progress(plan.fingerprint)
    if known is None:
        return PlanProgress(len(plan), 0, ())
    plan.prompts.expect(known.cells // plan.per_prompt)
    return known


async def _ask(
    plan: Plan, teacher: Teacher, start: PlanProgress, terms: Terms, outage: Outage
) -> tuple[Progress, PotstillError | StoppedError | None]:
    """Ask for what is missing, one by one or in batch jobs; gives the progress, and what ended it early."""
    if terms.pilot is not None:
        positions = pilot_cells(plan, terms.pilot)
        total, start = len(positions), PlanProgress(len(plan), len(plan), tuple(positions))
    else:
        total = start.cells
    known = total - (start.cells - start.first_open) - len(start.holes)
    progress = Progress(total, 0.0, done=known, reused=known)
    track = _Track(plan, teacher.ledger, start, kept=terms.pilot is None and not terms.offline)
    async with _stopping(teacher, terms.stop):
        if isinstance(teacher, Batcher):
            stopped = await _in_batches(plan, teacher, start, progress, terms)
        else:
            if isinstance(teacher, PaidTeacher):
                _refuse_waiting_jobs(plan.config, teacher)
            workers = min(plan.config.teacher.max_concurrency, max(1, progress.left))
            asking = Asking(teacher, plan.config.generate, workers, terms.report, track.begun, track.settled, outage)
            stopped = await ask_all(plan.cells(start.first_open, start.holes), progress, asking)
    await track.save()
    return progress, stopped


async def _in_batches(
    plan: Plan, batcher: Batcher, start: PlanProgress, progress: Progress, terms: Terms
) -> PotstillError | StoppedError | None:
    """Batch rounds look every cell up in the ledger: where one-by-one runs stopped says nothing about the jobs."""
    first, holes = (start.first_open, start.holes) if terms.pilot is not None else (0, ())
    progress.done = progress.reused = 0
    rounds = Rounds(
        batcher=batcher,
        generate=plan.config.generate,
        cells=lambda: plan.cells(first, holes),
        size=plan.config.teacher.batch_size,
        most=plan.config.teacher.max_attempts,
        report=terms.report,
        max_requests=terms.max_requests,
    )
    return await (rounds.cancel(progress) if terms.cancel_batches else rounds.run(progress))


def _refuse_waiting_jobs(config: Config, teacher: PaidTeacher) -> None:
    """What a batch job is to answer must not be asked, and paid for, beside it."""
    waiting = teacher.ledger.jobs.unfinished(config.teacher.model)
    if waiting:
        message = f"this workspace still waits for {counted(len(waiting), 'batch job')}"
        raise UsageError(message, hint="wait for them with --service batch, or end them with --cancel-batches")


class _Track:
    """Writes down, every now and then, how far a plan is; nothing of a pilot, which jumps about in it."""

    def __init__(self, plan: Plan, ledger: Ledger, start: PlanProgress, *, kept: bool) -> None:
        self._plan = plan.fingerprint
        self._ledger = ledger
        self._frontier = Frontier(start)
        self._kept = kept
        self._unsaved = 0

    def begun(self, position: int) -> None:
        self._frontier.given_out(position)

    async def settled(self, position: int, *, answered: bool) -> None:
        (self._frontier.answered if answered else self._frontier.failed)(position)
        self._unsaved += 1
        if self._unsaved >= SAVE_EVERY:
            await self.save()

    async def save(self) -> None:
        self._unsaved = 0
        if self._kept:
            await self._ledger.advance(self._plan, self._frontier.progress())


@asynccontextmanager
async def _stopping(teacher: Teacher, stop: asyncio.Event) -> AsyncIterator[None]:
    """Hand a stop that the user asks for to the teacher."""

    async def watch() -> None:
        await stop.wait()
        teacher.stop()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


@asynccontextmanager
async def _teacher(plan: Plan, secrets: Secrets, workspace: Workspace, terms: Terms) -> AsyncIterator[Teacher]:
    """Who answers the plan; where it asks nothing (traces alone), the ledger, which needs no key."""
    config = plan.config
    if terms.offline or (plan.is_empty and not terms.cancel_batches):
        async with open_offline(config, workspace) as offline:
            yield offline
    elif config.teacher.service == "batch" or terms.cancel_batches:
        async with open_batcher(config, secrets, workspace, command="generate") as batcher:
            yield batcher
    else:
        opened = open_teacher(config, secrets, workspace, command="generate", max_requests=terms.max_requests)
        async with opened as teacher:
            yield teacher
