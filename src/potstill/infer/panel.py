"""All roles of the student in one batch, and questions that arrive meanwhile in the next one; to a server, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from potstill.errors import MachineError
from potstill.files import read_text
from potstill.records import Message, Verdict, from_json
from potstill.student.answers import Piece, Remote, Student, StudentAnswer, StudentQuery
from potstill.workspace import StudentFiles

MAX_BATCH = 32
"""Queries of one batch."""


class Panel:
    """Asks several roles of a student at once: here one batch runs at a time, in a thread; a remote one gets each at once."""

    def __init__(self, student: Student, roles: Sequence[str], max_new_tokens: int) -> None:
        self.student = student
        self.roles = tuple(roles)
        self._max_new_tokens = max_new_tokens
        self._waiting: list[tuple[list[StudentQuery], asyncio.Future[list[StudentAnswer]]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def ask(self, messages: Sequence[Message]) -> list[StudentAnswer]:
        """One answer of each role to one chat. Raises what the student raises."""
        queries = [
            StudentQuery(role=role, messages=tuple(messages), max_new_tokens=self._max_new_tokens)
            for role in self.roles
        ]
        if isinstance(self.student, Remote):
            return await self.student.ask(queries)
        future: asyncio.Future[list[StudentAnswer]] = asyncio.get_running_loop().create_future()
        self._waiting.append((queries, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        """Answer what waits, batch by batch. A batch that fails fails every question in it, and no other."""
        while self._waiting:
            taken = [self._waiting.pop(0)]
            while self._waiting and sum(len(queries) for queries, _ in taken) + len(self.roles) <= MAX_BATCH:
                taken.append(self._waiting.pop(0))
            flat = [query for queries, _ in taken for query in queries]
            work = asyncio.ensure_future(asyncio.to_thread(self._answers, flat))
            await asyncio.wait([work])
            error = work.exception()
            answers = iter([] if error else work.result())
            for queries, future in taken:
                mine = [] if error else [next(answers) for _ in queries]
                if future.done():  # its caller was cancelled
                    continue
                if error:
                    future.set_exception(error)
                else:
                    future.set_result(mine)

    def _answers(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        answers = self.student.answer(queries)
        if len(answers) != len(queries):
            message = f"student {self.student.name!r} gave {len(answers)} answers to {len(queries)} queries"
            raise MachineError(message)
        return answers


class LazyStudent:
    """A student that is loaded when it is first asked: a cache hit needs its fingerprint, not its weights.

    Asking raises MachineError where another one has taken its place meanwhile: verdict and cache entries are not its own.
    """

    def __init__(self, name: str, roles: tuple[str, ...], fingerprint: str, load: Callable[[], Student]) -> None:
        self.name = name
        self.roles = roles
        self.fingerprint = fingerprint
        self._load = load
        self._student: Student | None = None

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Answer all queries in one batch."""
        return self._loaded().answer(queries)

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Answer piece by piece."""
        return self._loaded().stream(queries)

    def _loaded(self) -> Student:
        if self._student is None:
            student = self._load()
            if missing := set(self.roles) - set(student.roles):
                message = f"student {self.name!r} was not trained on {', '.join(sorted(missing))}"
                raise MachineError(message, hint="distill it anew, or set infer.roles")
            if student.fingerprint != self.fingerprint:
                message = f"student {self.name!r} was trained anew since this run began"
                raise MachineError(message, hint="the same command again takes the new one")
            self._student = student
        return self._student


def read_verdict(files: StudentFiles) -> Verdict | None:
    """A student's verdict; None where it has none."""
    if not files.verdict.is_file():
        return None
    return from_json(Verdict, read_text(files.verdict, "verdict"), files.verdict, hint="run `potstill distill` again")
