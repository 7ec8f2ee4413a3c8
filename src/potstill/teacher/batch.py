"""Batch jobs from the first reservation to the last settled line, at the one ledger.

Each step is on disk before the next begins: the reservations, the uploaded file, the job's name. A job travels under a
label of its own, so that one whose creation was never answered is found again instead of being sent twice.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from potstill.config import TeacherConfig
from potstill.errors import QuotaError, TeacherError
from potstill.ledger import Job, Ledger, Settlement
from potstill.records import Usage
from potstill.teacher.batch_service import BatchService, CallFailedError, JobView
from potstill.teacher.calls import TeacherRequest
from potstill.teacher.line import StoppedError
from potstill.teacher.paid import Accounts, intent_of, priced_reply, uncounted
from potstill.teacher.retrying import Failure, GiveUp, Keep, Retry, Stop, after_failure, after_reply
from potstill.teacher.transport import Received
from potstill.teacher.wire import parse_reply, raw_json

Result = TypeVar("Result")
Item = TypeVar("Item")

FINAL_CODES = frozenset({400, 401, 403, 404, 3, 5, 7, 9})
"""Codes of a line's error, by HTTP or by google.rpc.Code, that the same line would meet again."""
SETTLED_TOGETHER = 256
PATIENCE = 10
"""Calls about one job that may fail in a row."""


@dataclass
class JobResult:
    """What a job came to: answers, dollars, and the lines without an answer: key -> (reason, final).

    A final failure would be met again; the others may be sent once more.
    """

    answered: int = 0
    usd: Decimal = Decimal(0)
    failed: dict[str, tuple[str, bool]] = field(default_factory=dict)


class Batcher:
    """Sends requests as batch jobs and settles their lines. `folder` holds a job's file until it is uploaded."""

    def __init__(self, teacher: TeacherConfig, accounts: Accounts, service: BatchService, folder: Path) -> None:
        self._teacher = teacher
        self._accounts = accounts
        self._service = service
        self._folder = folder
        self._stopped = asyncio.Event()
        self._running = 0

    @property
    def ledger(self) -> Ledger:
        """The ledger that the jobs stand in."""
        return self._accounts.ledger

    def stop(self) -> None:
        """Wait for nothing any more; the jobs go on at the teacher, and the next run finds them."""
        self._stopped.set()

    def unfinished(self) -> list[Job]:
        """Jobs of earlier runs that are still to be settled."""
        return self.ledger.jobs.unfinished(self._teacher.model)

    async def plan(self, requests: Sequence[TeacherRequest]) -> tuple[Job, int]:
        """Reserve a job for these requests; gives it, and how many of them the budget allowed. Raises BudgetError."""
        intents = [intent_of(request, "batch", self._accounts, request.input_tokens) for request in requests]
        label = f"potstill-{secrets.token_hex(8)}"
        return await self.ledger.jobs.plan(label, self._teacher.model, intents)

    async def run(self, job: Job, *, cancel: bool = False, waiting: Callable[[], None] = lambda: None) -> JobResult:
        """Bring a job from wherever it is to its end, and settle what it gave; `waiting` is called before each wait for it.

        Raises KeyRefusedError, UsageError for an unknown model, QuotaError where the queue is full, TeacherError where
        the service is out of reach, and StoppedError; but for an unknown model the job stays for the next run.
        """
        self._running += 1
        try:
            new = job.status == "planned"
            if new:
                job = await self._upload(job)
            if job.status == "uploaded":
                created = await self._create(job, new=new, cancel=cancel)
                if isinstance(created, JobResult):
                    return created
                job = created
            begun = await self._cancel(job) if cancel else True
            return await self._collect(job, await self._wait(job, waiting), begun=begun)
        finally:
            self._running -= 1

    async def _upload(self, job: Job) -> Job:
        path = self._folder / f"{job.label}.jsonl"
        await asyncio.to_thread(_write_lines, path, list(self.ledger.jobs.requests(job.id)))
        try:
            file = await self._insist(lambda: self._service.upload(path, job.label))
        finally:
            path.unlink(missing_ok=True)
        await self.ledger.jobs.mark(job.id, "uploaded", file=file)
        return replace(job, status="uploaded", file=file)

    async def _create(self, job: Job, *, new: bool, cancel: bool) -> Job | JobResult:
        """Create the job, once: where that may have happened already it is looked for first."""
        sure, refused = new, 0
        while True:
            view = None if sure else await self._insist(lambda: self._service.find(job.label))
            if view is None and cancel:
                return await self._refuse(job, "cancelled before it was sent")
            if view is None:
                try:
                    view = await self._service.create(self._teacher.model, job.file or "", job.label)
                except CallFailedError as error:
                    refused += 1
                    over = await self._not_created(job, error, refused, new=new)
                    if over is not None:
                        return over
                    sure = error.received.status == HTTPStatus.TOO_MANY_REQUESTS
                    continue
            await self.ledger.jobs.mark(job.id, "submitted", name=view.name)
            return replace(job, status="submitted", name=view.name)

    async def _not_created(self, job: Job, error: CallFailedError, refused: int, *, new: bool) -> JobResult | None:
        """Decide after a creation that failed: wait, raise, or give the job's lines up (then with their result)."""
        decision = _decide(error.received, refused)
        if isinstance(decision, Stop):
            if error.received.status == HTTPStatus.NOT_FOUND and new:
                await self._refuse(job, decision.error.message)
            raise decision.error from error
        if isinstance(decision, GiveUp):
            return await self._refuse(job, decision.detail)
        full = error.received.status == HTTPStatus.TOO_MANY_REQUESTS
        if refused >= PATIENCE and not (full and self._running > 1):
            message = "the teacher takes no batch job now" + (": its queue is full" if full else "")
            raise QuotaError(message, hint="run the same command again later: the job waits in the ledger") from error
        await self._rest(self._teacher.batch_poll_s)
        return None

    async def _wait(self, job: Job, waiting: Callable[[], None]) -> JobView:
        """Look at the job now and then until it has ended; one that is gone has ended too."""
        name = job.name or ""
        while True:
            try:
                view = await self._insist(lambda: self._service.get(name))
            except CallFailedError as error:
                return JobView(name, job.label, "GONE", error=str(error))
            if view.ended:
                return view
            waiting()
            await self._rest(self._teacher.batch_poll_s)

    async def _cancel(self, job: Job) -> bool:
        """Cancel a job; whether lines of it may have been answered before."""
        name = job.name or ""
        with suppress(CallFailedError):  # it has ended already, which the next look will show
            view = await self._insist(lambda: self._service.get(name))
            await self._insist(lambda: self._service.cancel(name))
            return view.begun
        return True

    async def _collect(self, job: Job, view: JobView, *, begun: bool) -> JobResult:
        """Settle every line that the job gave, then close those that it did not give."""
        waiting = self.ledger.jobs.open_attempts(job.id)
        result = JobResult()
        if view.output_file is not None:
            data = await self._insist(lambda: self._service.download(str(view.output_file)))
            await self._settle_lines(_lines(data), waiting, result)
        reason = "no line in the result" if view.state == "SUCCEEDED" else f"batch {view.state.lower()}"
        # A job that had begun and hands nothing out may have billed any of its lines.
        unbilled = not begun or (view.state != "SUCCEEDED" and view.output_file is not None)
        close = self.ledger.fail if unbilled else self.ledger.lose
        await _together(close(attempt, reason) for attempt in waiting.values())
        result.failed |= dict.fromkeys(waiting, (f"{reason}: {view.error}" if view.error else reason, False))
        await self.ledger.jobs.mark(job.id, "ended")
        if job.file is not None:
            with suppress(CallFailedError):  # the teacher deletes it by itself within days
                await self._service.delete(job.file)
        return result

    async def _settle_lines(self, lines: Iterable[dict[str, Any]], waiting: dict[str, int], result: JobResult) -> None:
        settling = []
        for line in lines:
            key = str(line.get("key"))
            attempt = waiting.pop(key, None)
            if attempt is not None:
                settling.append(self._settle(key, attempt, line, result))
        await _together(settling)

    async def _settle(self, key: str, attempt: int, line: dict[str, Any], result: JobResult) -> None:
        """Write down one line: an answer, a reply that was billed for nothing, or an error."""
        if "response" not in line:
            error = line.get("error")
            error = error if isinstance(error, dict) else {"message": str(error)}
            reason = f"batch error {error.get('code', '')}: {error.get('message', '')}"
            result.failed[key] = (reason, error.get("code") in FINAL_CODES)
            await self.ledger.fail(attempt, reason)
            return
        raw = raw_json(line["response"])
        reply = parse_reply(raw)
        if reply is None:
            result.failed[key] = ("unreadable reply", False)
            await self.ledger.lose(attempt, "unreadable reply")
            return
        priced = priced_reply(self._accounts.book, reply, self._teacher.model, "batch")
        if reply.usage == Usage():
            priced = uncounted(self.ledger.jobs.reserved(attempt))
        settlement = Settlement(raw, reply.usage, priced.usd, priced.price_id, 0.0)
        result.usd += priced.usd
        if isinstance(after_reply(reply, 0, 0.0), Keep):
            result.answered += 1
            await self.ledger.settle(attempt, settlement)
        else:
            reason = f"empty reply ({reply.finish_reason})"
            result.failed[key] = (reason, False)
            await self.ledger.fail(attempt, reason, settlement)

    async def _refuse(self, job: Job, reason: str) -> JobResult:
        """Give a job up that was never created: nothing of it was billed."""
        waiting = self.ledger.jobs.open_attempts(job.id)
        await _together(self.ledger.fail(attempt, reason) for attempt in waiting.values())
        await self.ledger.jobs.mark(job.id, "ended")
        return JobResult(failed=dict.fromkeys(waiting, (reason, True)))

    async def _insist(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Call until it works; raises CallFailedError where it never will, and what stops the whole run."""
        for attempt in range(1, PATIENCE + 1):
            try:
                return await call()
            except CallFailedError as error:
                decision = _decide(error.received, attempt)
                if isinstance(decision, GiveUp) or error.received.status == HTTPStatus.NOT_FOUND:
                    raise
                if isinstance(decision, Stop):
                    raise decision.error from error
                await self._rest(min(decision.after_s, self._teacher.batch_poll_s))
        message = "the batch service is out of reach; the jobs go on there"
        raise TeacherError(message, reason="batch", hint="run the same command again: it finds them")

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)
        if self._stopped.is_set():
            raise StoppedError


def _decide(received: Received, attempt: int) -> Retry | GiveUp | Stop:
    failure = Failure(received.lost or "http", received.status, received.body)
    return after_failure(failure, attempt, PATIENCE + 1, datetime.now(UTC), 0.5)


def _write_lines(path: Path, requests: Iterable[tuple[str, str]]) -> None:
    """A job's input: key and body, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for key, request in requests:
            file.write(json.dumps({"key": key, "request": json.loads(request)["body"]}, ensure_ascii=False) + "\n")


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects of a result file; a line that is none says nothing about any request."""
    for raw in data.splitlines():
        try:
            parsed = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(parsed, dict):
            yield parsed


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


async def _together(settling: Iterable[Awaitable[None]]) -> None:
    """Await so many at once that the ledger commits them in large groups."""
    for group in _batched(settling, SETTLED_TOGETHER):
        await asyncio.gather(*group)
