"""One thread steps the engine; requests join and leave between two steps, whatever their roles.

A request's way: `submit` counts its queries and leaves a command; the thread lets them join the engine, and hands the
pieces of each step to the job that each belongs to. Leaving early and changing the roles are commands too. A fault of
the engine fails what runs in it; a fresh one must answer before requests are taken again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from potstill.records import Message
from potstill.serve.outage import EngineFailedError, Outage, QueueFullError, UnavailableError
from potstill.student.answers import Continuous, Engine, Piece, Prepared, StudentQuery

log = logging.getLogger(__name__)
Item = Piece | Exception
Command = Callable[[], None]


class Job:
    """One request's queries on their way through the engine. `deliver` hands over what comes, in the worker's thread."""

    def __init__(self, prepared: Sequence[Prepared], deliver: Callable[[Item], None]) -> None:
        self.prepared = tuple(prepared)
        self.deliver = deliver
        self.gone = False


class Worker:
    """Runs the engine of one student. `observe` is told after each step how many queries shared it."""

    def __init__(
        self, student: Continuous, *, max_batch: int, max_queue: int, observe: Callable[[int], None] = lambda _: None
    ) -> None:
        self.student = student
        self._max_batch = max_batch
        self._max_open = max_batch + max_queue
        self._observe = observe
        self._engine: Engine = student.open(max_batch)
        self._outage: Outage | None = None
        self._rows: dict[int, tuple[Job, int]] = {}  # the engine's number of a query -> its job, and its index there
        self._changed = threading.Condition()  # guards what follows
        self._commands: list[Command] = []
        self._open = 0  # queries that have neither their answer nor been given up
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="potstill-student", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def refusal(self) -> UnavailableError | None:
        """Why no request is taken; None where they are."""
        if self._closing:
            return UnavailableError("the server is ending")
        outage = self._outage
        return None if outage is None else outage.refusal

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
        """Queue a request; raises UnavailableError. From any thread."""
        job = Job(prepared, deliver)
        with self._changed:
            if (refusal := self.refusal) is not None:
                raise refusal
            if self._open + len(job.prepared) > self._max_open:
                raise QueueFullError
            self._open += len(job.prepared)
            self._command(lambda: self._join(job))
        return job

    def cancel(self, job: Job) -> None:
        """Nothing more of this job is wanted: its places are free at the next step. From any thread."""
        with self._changed:
            job.gone = True
            self._command(lambda: self._leave(job))

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
            self._command(run)
        await asyncio.wrap_future(done)

    def _command(self, command: Command) -> None:
        self._commands.append(command)
        self._changed.notify()

    # From here on: in the thread.

    def _work(self) -> None:
        while (commands := self._next_commands()) is not None:
            for command in commands:
                self._guarded(command)
            if self._outage is not None and not self._outage.wait_s:
                self._try_fresh_engine(self._outage)
            elif self._rows:
                self._guarded(self._step)

    def _next_commands(self) -> list[Command] | None:
        """Wait until there is something to do; what was commanded, None at the end."""
        with self._changed:
            patience = None if self._outage is None else self._outage.wait_s
            self._changed.wait_for(lambda: self._commands or self._rows or self._closing, patience)
            commands, self._commands = self._commands, []
            return None if self._closing and not (commands or self._rows) else commands

    def _guarded(self, command: Command) -> None:
        """The edge of the server: what goes wrong in the engine fails the requests that run in it, not the worker."""
        try:
            command()
            return
        except Exception as error:
            log.exception("the student failed")
            outage = Outage.of(error, tries=0)
        # Not above: the error's traceback holds the tensors of the step that failed.
        jobs = {id(job): job for job, _ in self._rows.values()}
        self._release(len(self._rows))
        self._rows.clear()
        for job in jobs.values():
            job.deliver(EngineFailedError())
        self._try_fresh_engine(outage)

    def _try_fresh_engine(self, outage: Outage) -> None:
        """Take requests again as soon as a fresh engine has answered; what broke the last one may still be there."""
        word = StudentQuery(role=self.student.roles[0], messages=(Message(role="user", content="?"),), max_new_tokens=1)
        try:
            self._engine = self.student.open(self._max_batch)
            self._engine.add(self._engine.prepare(word))
            while self._engine.running or self._engine.waiting:
                self._engine.step()
        except Exception as error:
            self._outage = Outage.of(error, outage.tries + 1)
            log.exception("a fresh engine failed too; the next one in %.0f s", self._outage.wait_s)
        else:
            self._outage = None

    def _step(self) -> None:
        pieces = self._engine.step()
        self._observe(self._engine.running)
        for piece in pieces:
            job, index = self._rows[piece.index]
            if piece.answer is not None:
                self._forget(piece.index)
            if not job.gone:
                job.deliver(piece.model_copy(update={"index": index}))

    def _join(self, job: Job) -> None:
        try:
            for index, one in enumerate(() if job.gone else job.prepared):
                self._rows[self._add(one)] = (job, index)
        except Exception as error:  # noqa: BLE001  (handed to whoever asked; the others' rows are untouched)
            job.gone = True
            job.deliver(error)
        if job.gone:
            self._release(len(job.prepared) - len(self._rows_of(job)))
            self._leave(job)

    def _add(self, query: Prepared) -> int:
        if self._outage is not None:
            raise self._outage.refusal
        return self._engine.add(query)

    def _leave(self, job: Job) -> None:
        for number in self._rows_of(job):
            self._engine.cancel(number)
            self._forget(number)

    def _rows_of(self, job: Job) -> list[int]:
        return [number for number, (owner, _) in self._rows.items() if owner is job]

    def _forget(self, number: int) -> None:
        del self._rows[number]
        self._release(1)

    def _release(self, count: int) -> None:
        with self._changed:
            self._open -= count
