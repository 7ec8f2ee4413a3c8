"""Ask the teacher for every cell of a plan: bounded, in constant memory, and stopped in good order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal

from potstill.errors import PotstillError, TeacherError
from potstill.generate.plan import Cell, Plan
from potstill.teacher.calls import Asks


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
    """How far a run is. Dollars are those of this run; `reused` answers were paid for earlier."""

    total: int
    started: float
    done: int = 0
    reused: int = 0
    spent_usd: Decimal = Decimal(0)
    failed: list[Failed] = field(default_factory=list)

    @property
    def paid(self) -> int:
        """Answers paid for in this run."""
        return self.done - self.reused

    def rate(self, now: float) -> float:
        """Answers paid for per second."""
        return self.paid / max(now - self.started, 1e-9)

    def eta_s(self, now: float) -> float | None:
        """Seconds to go at this rate; None before the first answer."""
        rest = self.total - self.done - len(self.failed)
        return rest / self.rate(now) if self.paid else None

    def expected_usd(self) -> Decimal | None:
        """What the whole run will have cost at this run's mean; None before the first paid answer."""
        rest = self.total - self.done - len(self.failed)
        return self.spent_usd + self.spent_usd / self.paid * rest if self.paid else None


Report = Callable[[Progress], None]


async def ask_all(plan: Plan, teacher: Asks, report: Report, *, workers: int) -> Progress:
    """Ask for every cell with `workers` at once; `report` gets the progress.

    A cell that fails for good is listed and the rest goes on. An error that stops everything (budget, quota, key) lets
    what is in flight settle first, and is then raised.
    """
    progress = Progress(total=len(plan), started=time.monotonic())
    cells = iter(plan)
    stopped: list[PotstillError] = []

    async def work() -> None:
        for cell in _until(cells, stopped):
            try:
                answer = await teacher.ask(cell.request)
            except TeacherError as error:
                failed = Failed(cell.role.name, cell.prompt.source, cell.sample, error.reason, error.message)
                progress.failed.append(failed)
            except PotstillError as error:
                stopped.append(error)
            else:
                progress.done += 1
                progress.reused += answer.reused
                progress.spent_usd += 0 if answer.reused else answer.cost_usd
            report(progress)

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
    if stopped:
        raise stopped[0]
    return progress


def _until(cells: Iterator[Cell], stopped: list[PotstillError]) -> Iterator[Cell]:
    """Cells from an iterator that all workers share, until something has stopped the run."""
    for cell in cells:
        yield cell
        if stopped:
            return
