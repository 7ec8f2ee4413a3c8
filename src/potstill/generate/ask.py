"""Ask the teacher for every cell of a plan: bounded, in constant memory, and stopped in good order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from potstill.config import GenerateConfig
from potstill.errors import MachineError, PotstillError, TeacherError
from potstill.generate.outcomes import second_request
from potstill.generate.plan import Cell
from potstill.teacher.calls import Answer, Asks
from potstill.teacher.line import StoppedError
from potstill.teacher.transport import NO_CONNECTION, REACH_HINT


@dataclass(frozen=True)
class Failed:
    """A cell that has no answer, and why."""

    role: str
    prompt: str
    sample: int
    reason: str
    detail: str


@dataclass
class Progress:
    """How far a run, or a paid step of it, is. Dollars are those of this run; `reused` answers were paid for earlier.

    `total` is 0 while it is not known how many there will be; `jobs` are batch jobs under way.
    """

    total: int
    started: float
    done: int = 0
    reused: int = 0
    spent_usd: Decimal = Decimal(0)
    failed: list[Failed] = field(default_factory=list)
    step: str = "generate"
    jobs: int = 0

    @property
    def over(self) -> bool:
        """Whether everything has been asked for."""
        return self.total > 0 and self.left == 0

    @property
    def paid(self) -> int:
        """Answers paid for in this run."""
        return self.done - self.reused

    @property
    def left(self) -> int:
        """Cells that were not asked for yet."""
        return max(0, self.total - self.done - len(self.failed))

    def rate(self, now: float) -> float:
        """Answers paid for per second."""
        return self.paid / max(now - self.started, 1e-9)

    def eta_s(self, now: float) -> float | None:
        """Seconds to go at this rate; None before the first answer."""
        return self.left / self.rate(now) if self.paid and self.total else None

    def expected_usd(self) -> Decimal | None:
        """What the whole run will have cost at this run's mean; None before the first paid answer."""
        return self.spent_usd + self.spent_usd / self.paid * self.left if self.paid and self.total else None

    def count(self, answers: list[Answer]) -> None:
        """A cell has its answer; `answers` are what was asked for it, the last one being kept."""
        self.done += 1
        self.reused += all(answer.reused for answer in answers)
        self.spent_usd += sum((answer.cost_usd for answer in answers if not answer.reused), Decimal(0))


OUTAGE_S = 600.0
"""How long a run that has had answers goes on while no request finds a connection."""
Report = Callable[[Progress], None]
Cells = Iterator[tuple[int, Cell]]


class Settled(Protocol):
    """Hears that a cell is done with."""

    async def __call__(self, position: int, *, answered: bool) -> None:
        """Take note."""


@dataclass
class Outage:
    """Requests in a row that found no connection; pure. Times are seconds of any clock."""

    count: int = 0
    since: float = 0.0
    was_reached: bool = False

    def answered(self) -> None:
        """The teacher was heard."""
        self.count, self.was_reached = 0, True

    def failed(self, reason: str, now: float) -> None:
        """A request failed for good; one that was answered by a refusal found a connection."""
        if not reason.startswith(NO_CONNECTION):
            self.count = 0
            return
        self.since = self.since if self.count else now
        self.count += 1

    def ends_run(self, workers: int, now: float) -> bool:
        """Whether to ask no more: each of the workers has failed, and the teacher was never heard, or not for long."""
        return self.count >= max(workers, 3) and (not self.was_reached or now - self.since >= OUTAGE_S)


@dataclass(frozen=True)
class Asking:
    """Who is asked, by which rules, and who hears of it.

    `report` gets the progress after each cell; `begun` a position when it is given out, `settled` when it has an answer
    or has failed for good.
    """

    teacher: Asks
    generate: GenerateConfig
    workers: int
    report: Report
    begun: Callable[[int], None]
    settled: Settled
    outage: Outage


async def ask_all(cells: Cells, progress: Progress, asking: Asking) -> PotstillError | StoppedError | None:
    """Ask for every cell, `workers` at once; gives what ended the run early, or None.

    A cell that fails for good is listed and the rest goes on. An error that stops everything (budget, quota, key, no
    way to the teacher) and a stop that the user asked for let what is in flight settle first.
    """
    stopped: list[PotstillError | StoppedError] = []
    outage = asking.outage

    async def work() -> None:
        for position, cell in _until(cells, stopped):
            asking.begun(position)
            try:
                answers = await _answers(cell, asking)
            except TeacherError as error:
                failed = Failed(cell.role.name, cell.prompt.source, cell.sample, error.reason, error.message)
                progress.failed.append(failed)
                outage.failed(error.reason, time.monotonic())
                if outage.ends_run(asking.workers, time.monotonic()):
                    stopped.append(unreachable(error))
                await asking.settled(position, answered=False)
            except (PotstillError, StoppedError) as error:
                stopped.append(error)
            else:
                progress.count(answers)
                if not all(answer.reused for answer in answers):
                    outage.answered()
                await asking.settled(position, answered=True)
            asking.report(progress)

    progress.started = time.monotonic()
    tasks = [asyncio.create_task(work()) for _ in range(asking.workers)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
    return stopped[0] if stopped else None


def unreachable(error: TeacherError) -> MachineError:
    """What ends a run whose teacher is out of reach."""
    message = f"the teacher cannot be reached: {error.message}"
    return MachineError(message, hint=f"{REACH_HINT} the same command goes on from here")


async def _answers(cell: Cell, asking: Asking) -> list[Answer]:
    """The answer to a cell, and a second one where the first was cut off and the config says so."""
    first = await asking.teacher.ask(cell.request)
    longer = second_request(cell.request, first, asking.generate)
    return [first] if longer is None else [first, await asking.teacher.ask(longer)]


def _until(cells: Cells, stopped: list[PotstillError | StoppedError]) -> Cells:
    """Cells from an iterator that all workers share, until something has stopped the run."""
    for cell in cells:
        yield cell
        if stopped:
            return
