"""One thread steps the engine; requests join and leave between two steps, whatever their roles."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from potstill.student.answers import Continuous, Engine, Piece, Prepared, StudentAnswer, StudentQuery

log = logging.getLogger(__name__)
Item = Piece | Exception


class QueueFullError(Exception):
    """As many queries wait as may wait, or the server is ending."""


class Job:
    """One request's queries on their way through the engine. `deliver` hands over what comes, in the worker."""

    def __init__(self, prepared: Sequence[Prepared], deliver: Callable[[Item], None]) -> None:
        self.prepared = tuple(prepared)
        self.deliver = deliver
        self.open = len(prepared)
        self.numbers: list[int] = []
        self.gone = False


class Worker:
    """Runs the engine of one student. `observe` is told after each step how many queries shared it."""

    def __init__(
        self, student: Continuous, *, max_batch: int, max_queue: int, observe: Callable[[int], None] = lambda _: None
    ) -> None:
        self.student = student
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._observe = observe
        self._engine: Engine = student.open(max_batch)
        self._jobs: dict[int, tuple[Job, int]] = {}
        self._inbox: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._open = 0
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="potstill-student", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Queries that wait for a place."""
        return max(0, self._open - self._max_batch)

    @property
    def running(self) -> int:
        """Queries that have a place."""
        return min(self._open, self._max_batch)

    async def close(self) -> None:
        """Take nothing more, finish what is there, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def prepare(self, query: StudentQuery) -> Prepared:
        """Check a query; raises InputError. From any thread."""
        return self._engine.prepare(query)

    def submit(self, prepared: Sequence[Prepared], deliver: Callable[[Item], None]) -> Job:
        """Queue a request; raises QueueFullError. From any thread."""
        job = Job(prepared, deliver)
        with self._changed:
            if self._closing or self._open + job.open > self._max_batch + self._max_queue:
                raise QueueFullError
            self._open += job.open
            self._post(lambda: self._join(job))
        return job

    def cancel(self, job: Job) -> None:
        """Nothing more of this job is wanted: its places are free at the next step."""
        with self._changed:
            job.gone = True
            self._post(lambda: self._drop(job))

    async def change(self, change: Callable[[Any], None]) -> None:
        """Change the student's roles between two steps; raises what the change raises, and then nothing has changed."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                swap: Any = getattr(self._engine, "swap", None)
                if swap is None:
                    change(self.student)
                else:
                    swap(change)
            except Exception as error:  # noqa: BLE001  (handed to whoever asked for it)
                done.set_exception(error)
            else:
                done.set_result(None)

        with self._changed:
            self._post(run)
        await asyncio.wrap_future(done)

    def _post(self, command: Callable[[], None]) -> None:
        self._inbox.append(command)
        self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._inbox or self._jobs or self._closing):
                    self._changed.wait()
                commands, self._inbox = self._inbox, []
                if self._closing and not (commands or self._jobs):
                    return
            for command in commands:
                self._guarded(command)
            if self._jobs:
                self._guarded(self._step)

    def _guarded(self, command: Callable[[], None]) -> None:
        """The edge of the server: what goes wrong in the engine fails the requests that run in it, not the worker."""
        try:
            command()
        except Exception as error:
            log.exception("the student failed")
            self._fail(error)

    def _step(self) -> None:
        pieces = self._engine.step()
        self._observe(self._engine.running)
        for piece in pieces:
            job, index = self._jobs[piece.index]
            if piece.answer is not None:
                self._forget(piece.index)
            if not job.gone:
                job.deliver(piece.model_copy(update={"index": index}))

    def _join(self, job: Job) -> None:
        if job.gone:
            self._release(job.open)
            return
        try:
            for index, one in enumerate(job.prepared):
                number = self._engine.add(one)
                job.numbers.append(number)
                self._jobs[number] = (job, index)
        except Exception as error:  # noqa: BLE001  (handed to whoever asked; the others' rows are untouched)
            job.gone = True
            job.deliver(error)
            self._release(job.open - len(job.numbers))
            self._drop(job)

    def _drop(self, job: Job) -> None:
        for number in job.numbers:
            if number in self._jobs:
                self._engine.cancel(number)
                self._forget(number)

    def _forget(self, number: int) -> None:
        del self._jobs[number]
        self._release(1)

    def _release(self, count: int) -> None:
        with self._changed:
            self._open -= count

    def _fail(self, error: Exception) -> None:
        """Fail everything that runs, and begin with a fresh engine."""
        for job in {id(job): job for job, _ in self._jobs.values()}.values():
            job.deliver(error)
        self._release(len(self._jobs))
        self._jobs = {}
        self._engine = self.student.open(self._max_batch)


class AsyncJob:
    """A job whose pieces come into the event loop that made it."""

    def __init__(self, worker: Worker, prepared: Sequence[Prepared]) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Item] = asyncio.Queue()
        self._job = worker.submit(prepared, self._deliver)
        self.count = len(prepared)

    def _deliver(self, item: Item) -> None:
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)

    def cancel(self) -> None:
        """The client is gone, or the answer is complete: nothing more is wanted."""
        self._worker.cancel(self._job)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all queries as they come; raises what the student raised."""
        still = self.count
        while still:
            item = await self._arrived.get()
            if isinstance(item, Exception):
                raise item
            still -= item.answer is not None
            yield item


class SharedStudent:
    """Implements `answers.Student` for callers in other threads (the router): their queries share the batches."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def name(self) -> str:
        """The student's name."""
        return self._worker.student.name

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that it answers as."""
        return self._worker.student.roles

    @property
    def fingerprint(self) -> str:
        """A hash of everything that changes its answers."""
        return self._worker.student.fingerprint

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Answer all queries, in their order; raises InputError, or QueueFullError."""
        found = {piece.index: piece.answer for piece in self.stream(queries) if piece.answer is not None}
        return [found[index] for index in range(len(queries))]

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Answer piece by piece; closing the iterator stops the work."""
        arrived: queue.SimpleQueue[Item] = queue.SimpleQueue()
        job = self._worker.submit([self._worker.prepare(query) for query in queries], arrived.put)
        still = len(queries)
        try:
            while still:
                item = arrived.get()
                if isinstance(item, Exception):
                    raise item
                still -= item.answer is not None
                yield item
        finally:
            if still:
                self._worker.cancel(job)
