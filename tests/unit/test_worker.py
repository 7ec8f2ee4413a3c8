"""What the worker does when the engine breaks between two steps: in the joining or the leaving of a request."""

from __future__ import annotations

import asyncio

import pytest
from tests.contract.test_serve_openai import Scripted

from potstill.errors import MachineError
from potstill.records import Message
from potstill.serve.jobs import AsyncJob, SharedStudent
from potstill.serve.outage import EngineFailedError
from potstill.serve.worker import Worker
from potstill.student.answers import Prepared, StudentQuery
from potstill.student.scripted import ScriptedEngine, ScriptedRow


class Fragile(ScriptedEngine):
    """Has no room for what ends in `full`, and breaks when what says `hold` is cancelled."""

    def add(self, row: ScriptedRow) -> int:
        """Let a row join, or not."""
        if row.query.messages[-1].content == "full":
            raise MemoryError
        return super().add(row)

    def cancel(self, number: int) -> None:
        """Drop a row, or break."""
        if any(row.number == number and row.query.messages[-1].content == "hold" for row in self._rows):
            raise RuntimeError
        super().cancel(number)


class FragileStudent(Scripted):
    """A student with such an engine."""

    def open(self, slots: int) -> ScriptedEngine:
        """A fresh one."""
        return Fragile(self, slots)


async def test_a_request_that_cannot_join_fails_alone() -> None:
    """No memory for one of a request's queries is told to its caller, and leaves nothing; who runs goes on, who comes is served."""
    student = FragileStudent()
    worker = Worker(student, max_batch=4, max_queue=0)
    worker.start()
    running = AsyncJob(worker, prepared(worker, "hold"))
    assert student.started.wait(20)
    refused = AsyncJob(worker, prepared(worker, "go", "full"))
    student.released.set()
    with pytest.raises(MemoryError):
        [piece async for piece in refused.pieces()]
    refused.cancel()
    assert [piece async for piece in running.pieces()][-1].answer is not None
    after = AsyncJob(worker, prepared(worker, "a", "b", "c", "d"))  # every place is free again
    assert len([piece async for piece in after.pieces() if piece.answer is not None]) == 4
    assert worker.refusal is None
    await worker.close()


async def test_an_engine_that_breaks_on_a_cancelled_request_is_replaced() -> None:
    """What still runs in it is told, and the next request is served."""
    student = FragileStudent()
    worker = Worker(student, max_batch=4, max_queue=0)
    worker.start()
    leaving, staying = AsyncJob(worker, prepared(worker, "hold")), AsyncJob(worker, prepared(worker, "go on and on"))
    assert student.started.wait(20)
    leaving.cancel()
    student.released.set()
    with pytest.raises(EngineFailedError):
        [piece async for piece in staying.pieces()]
    after = AsyncJob(worker, prepared(worker, "a", "b", "c", "d"))
    assert len([piece async for piece in after.pieces() if piece.answer is not None]) == 4
    await worker.close()


async def test_the_router_is_told_of_a_broken_engine_in_its_own_terms() -> None:
    """What breaks while a router's question waits is a MachineError, after which it asks the teacher; the next is answered."""
    student = FragileStudent()
    worker = Worker(student, max_batch=4, max_queue=4)
    worker.start()
    leaving = AsyncJob(worker, prepared(worker, "hold"))
    assert student.started.wait(20)
    words = (Message(role="user", content="go on and on"),)
    question = [StudentQuery(role=student.roles[0], messages=words, max_new_tokens=9)]
    routed = asyncio.create_task(asyncio.to_thread(SharedStudent(worker).answer, question))
    while worker.running < 2:  # noqa: ASYNC110  (the worker tells nobody)
        await asyncio.sleep(0.01)
    leaving.cancel()
    student.released.set()
    with pytest.raises(MachineError, match="engine failed"):
        await routed
    assert len(await asyncio.to_thread(SharedStudent(worker).answer, question)) == 1
    await worker.close()
    with pytest.raises(MachineError, match="ending"):
        SharedStudent(worker).answer(question)


async def test_a_failed_request_that_leaves_takes_nobody_along() -> None:
    """It leaves when the fresh engine has given its number to another request, which is answered all the same."""
    student = FragileStudent()
    worker = Worker(student, max_batch=4, max_queue=0)
    worker.start()
    failed = AsyncJob(worker, prepared(worker, "hold"))
    assert student.started.wait(20)
    failed.cancel()
    student.released.set()
    student.started.clear()
    student.released.clear()
    with pytest.raises(EngineFailedError):
        [piece async for piece in failed.pieces()]
    after = AsyncJob(worker, prepared(worker, "go, hold and go"))
    assert student.started.wait(20)
    failed.cancel()
    student.released.set()
    async with asyncio.timeout(20):
        assert [piece async for piece in after.pieces()][-1].answer is not None
    await worker.close()


def prepared(worker: Worker, *texts: str) -> list[Prepared]:
    """Queries of one request."""
    return [
        worker.prepare(
            StudentQuery(role="cost-analyst", messages=(Message(role="user", content=text),), max_new_tokens=50)
        )
        for text in texts
    ]
