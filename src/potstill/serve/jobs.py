"""Two ways to wait for the worker: in the event loop, and in a thread."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator, Sequence

from potstill.errors import MachineError
from potstill.serve.outage import EngineFailedError, QueueFullError, UnavailableError
from potstill.serve.worker import Item, Worker
from potstill.student.answers import Piece, Prepared, StudentAnswer, StudentQuery


class AsyncJob:
    """A job whose pieces come into the event loop that made it."""

    def __init__(self, worker: Worker, prepared: Sequence[Prepared]) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Item] = asyncio.Queue()
        self._job = worker.submit(prepared, self._deliver)

    def _deliver(self, item: Item) -> None:
        self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)

    def cancel(self) -> None:
        """The client is gone, or the answer is complete: nothing more is wanted."""
        self._worker.cancel(self._job)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all queries as they come; raises what the student raised."""
        still = len(self._job.prepared)
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
        """Answer all queries, in their order; raises InputError, QueueFullError, or MachineError where the engine failed."""
        found = {piece.index: piece.answer for piece in self.stream(queries) if piece.answer is not None}
        return [found[index] for index in range(len(queries))]

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Answer piece by piece; closing the iterator stops the work.

        An engine that failed is a MachineError, after which the router asks the teacher alone.
        """
        arrived: queue.SimpleQueue[Item] = queue.SimpleQueue()
        prepared = [self._worker.prepare(query) for query in queries]
        try:
            job = self._worker.submit(prepared, arrived.put)
        except QueueFullError:
            raise
        except UnavailableError as error:
            raise MachineError(error.message) from error
        still = len(queries)
        try:
            while still:
                item = arrived.get()
                if isinstance(item, EngineFailedError):
                    message = "the student's engine failed at this question, or at one beside it"
                    raise MachineError(message) from item
                if isinstance(item, Exception):
                    raise item
                still -= item.answer is not None
                yield item
        finally:
            if still:
                self._worker.cancel(job)
