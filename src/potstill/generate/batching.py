"""Get a plan's answers by batch jobs: in rounds, each asking for what is still missing, until nothing more comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from potstill.config import GenerateConfig
from potstill.errors import BudgetError, PotstillError
from potstill.generate.ask import Cells, Failed, Progress, Report
from potstill.generate.outcomes import second_request
from potstill.generate.plan import Cell
from potstill.ledger import Job, Ledger
from potstill.teacher.batch import Batcher, JobResult
from potstill.teacher.calls import TeacherRequest
from potstill.teacher.line import StoppedError
from potstill.teacher.paid import stored_answer


@dataclass
class Rounds:
    """One run in batch mode. `cells` gives the plan's cells anew for every round."""

    batcher: Batcher
    generate: GenerateConfig
    cells: Callable[[], Cells]
    size: int
    most: int
    report: Report
    max_requests: int | None = None
    failed: dict[str, tuple[str, bool]] = field(default_factory=dict)
    _limited: bool = False

    async def run(self, progress: Progress) -> PotstillError | StoppedError | None:
        """Go through rounds until everything is answered, failed for good, or a round brings nothing.

        Gives what ended the run early. Cells without an answer are then in `progress.failed`.
        """
        progress.started = time.monotonic()
        tries, stopped, going = 0, None, True
        while tries < self.most and stopped is None and going:
            self.failed = {key: found for key, found in self.failed.items() if found[1]}
            results, stopped = await self._round(progress)
            answered = sum(result.answered for result in results)
            going = bool(answered or any(result.failed for result in results))
            tries += not (self._limited and answered)  # a round that the budget cut short is no try at the rest
        await asyncio.to_thread(self._tally, progress, early=stopped is not None)
        self.report(progress)
        return stopped

    async def cancel(self, progress: Progress) -> PotstillError | StoppedError | None:
        """Cancel the jobs of earlier runs, and settle what they gave."""
        progress.started = time.monotonic()
        jobs = [self._start(job, progress, cancel=True) for job in self.batcher.unfinished()]
        _, stopped = await _all(jobs)
        await asyncio.to_thread(self._tally, progress, early=True)
        return stopped

    async def _round(self, progress: Progress) -> tuple[list[JobResult], PotstillError | StoppedError | None]:
        """Go on with the jobs that there are, send those that are missing, and wait for all of them."""
        jobs = [self._start(job, progress) for job in self.batcher.unfinished()]
        refused: PotstillError | None = None
        self._limited = False
        for chunk in self._missing():
            wanted = chunk[: self.max_requests]
            try:
                job, reserved = await self.batcher.plan(wanted)
            except BudgetError as error:
                refused, self._limited = error, True
                break
            jobs.append(self._start(job, progress))
            if self.max_requests is not None:
                self.max_requests -= reserved
            if reserved < len(chunk):
                self._limited = True
                break
        results, stopped = await _all(jobs)
        if self.max_requests == 0:
            message = "the limit of requests in one run is reached"
            refused = BudgetError(message, hint="run the same command again, or raise --max-requests")
        elif jobs:
            refused = None  # what they did not cost may pay for the rest in the next round
        return results, stopped or refused

    def _start(self, job: Job, progress: Progress, *, cancel: bool = False) -> asyncio.Task[JobResult]:
        async def run() -> JobResult:
            progress.jobs += 1
            try:
                result = await self.batcher.run(job, cancel=cancel, waiting=lambda: self.report(progress))
            finally:
                progress.jobs -= 1
            self.failed |= result.failed
            progress.done += result.answered
            progress.spent_usd += result.usd
            self.report(progress)
            return result

        return asyncio.create_task(run())

    def _missing(self) -> Iterator[list[TeacherRequest]]:
        """Requests to send, a job's worth at a time."""
        chunk: list[TeacherRequest] = []
        for _, cell in self.cells():
            request = next_request(cell, self.batcher.ledger, self.generate)
            if request is None or request.key in self.failed or self.batcher.ledger.jobs.waits(request.key):
                continue
            chunk.append(request)
            if len(chunk) == self.size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _tally(self, progress: Progress, *, early: bool) -> None:
        """Count by the ledger what there is; list what there is not, unless the run ended before asking for it all."""
        done, paid = 0, progress.paid
        for _, cell in self.cells():
            if stored_answer(self.batcher.ledger, cell.request) is not None:
                done += 1
                continue
            reason, _ = self.failed.get(cell.request.key, ("no answer", False))
            if not early or cell.request.key in self.failed:
                progress.failed.append(Failed(cell.role.name, cell.prompt.source, cell.sample, "batch", reason))
        progress.done, progress.reused = done, max(0, done - paid)


def next_request(cell: Cell, ledger: Ledger, generate: GenerateConfig) -> TeacherRequest | None:
    """What is still to be asked for a cell: its request, a second one where the answer was cut off, or nothing."""
    answer = stored_answer(ledger, cell.request)
    if answer is None:
        return cell.request
    longer = second_request(cell.request, answer, generate)
    return longer if longer is not None and stored_answer(ledger, longer) is None else None


async def _all(jobs: list[asyncio.Task[JobResult]]) -> tuple[list[JobResult], PotstillError | StoppedError | None]:
    """Wait for every job; what one of them raised does not end the others."""
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    results = [outcome for outcome in outcomes if isinstance(outcome, JobResult)]
    stopped: PotstillError | StoppedError | None = None
    for outcome in outcomes:
        if isinstance(outcome, PotstillError | StoppedError):
            stopped = stopped or outcome
        elif isinstance(outcome, BaseException):
            raise outcome
    return results, stopped
