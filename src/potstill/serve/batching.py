"""One thread runs the blocking student; requests that wait are answered together, whatever their roles."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from typing import Any

from potstill.errors import PotstillError
from potstill.student.answers import Piece, Student, StudentAnswer, StudentQuery

log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """As many requests wait as may wait."""


class SharedStudent:
    """A student that several threads may use, one at a time: the batcher's, and the router's."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The student's name."""
        return self._student.name

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles it was trained on."""
        return self._student.roles

    @property
    def fingerprint(self) -> str:
        """A hash of everything that changes its answers."""
        return self._student.fingerprint

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """As the student's, alone."""
        with self._lock:
            return self._student.answer(queries)

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """As the student's, alone until the iterator is exhausted or closed."""
        with self._lock:
            yield from self._student.stream(queries)


class Job:
    """One request's queries on their way through a batch. Belongs to the event loop that made it."""

    def __init__(self, queries: Sequence[StudentQuery]) -> None:
        self.queries = tuple(queries)
        self.gone = False
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    def give(self, item: Piece | Exception) -> None:
        """Hand over a piece, or the error that ends the job; called by the worker."""
        if not self.gone:
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)

    def cancel(self) -> None:
        """The client is gone: nothing more is wanted."""
        self.gone = True

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all queries as they come; raises what the student raised."""
        open_queries = len(self.queries)
        while open_queries:
            item = await self._arrived.get()
            if isinstance(item, Exception):
                raise item
            open_queries -= item.answer is not None
            yield item


class Batcher:
    """Static batches: what waits when the student is free, up to `max_batch` queries, is answered together."""

    def __init__(self, student: Student, *, max_batch: int, max_queue: int) -> None:
        self._student = student
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="potstill-student", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    async def close(self) -> None:
        """Take nothing more, finish what waits, and end the worker."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def submit(self, queries: Sequence[StudentQuery]) -> Job:
        """Queue a request; raises QueueFullError. Call it in the event loop."""
        job = Job(queries)
        with self._changed:
            self._waiting = deque(other for other in self._waiting if not other.gone)
            if self._closing or len(self._waiting) >= self._max_queue:
                raise QueueFullError
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _work(self) -> None:
        while jobs := self._take():
            self._answer(jobs)

    def _take(self) -> list[Job]:
        """The next batch; empty when the batcher is closed and nothing waits."""
        with self._changed:
            while True:
                jobs: list[Job] = []
                room = self._max_batch
                while self._waiting and len(self._waiting[0].queries) <= room:
                    job = self._waiting.popleft()
                    if not job.gone:
                        jobs.append(job)
                        room -= len(job.queries)
                if jobs or self._closing:
                    return jobs
                self._changed.wait()

    def _answer(self, jobs: list[Job]) -> None:
        given = False
        try:
            for job, piece in self._pieces(jobs):
                given = True
                job.give(piece)
        except PotstillError as error:
            if given or len(jobs) == 1:
                _fail(jobs, error)
            else:  # one bad request does not fail the others
                for job in jobs:
                    self._answer([job])
        except Exception as error:  # the edge of the server: a bug fails these requests, not the worker
            log.exception("the student failed")
            _fail(jobs, error)

    def _pieces(self, jobs: list[Job]) -> Iterator[tuple[Job, Piece]]:
        """The pieces with their owners; stops the student when nobody waits for it any more."""
        places = [(job, index) for job in jobs for index in range(len(job.queries))]
        stream: Any = self._student.stream([query for job in jobs for query in job.queries])
        with closing(stream):
            for piece in stream:
                if all(job.gone for job in jobs):
                    return
                job, index = places[piece.index]
                yield job, piece.model_copy(update={"index": index})


def _fail(jobs: list[Job], error: Exception) -> None:
    for job in jobs:
        job.give(error)
