"""Streamed and cancelled answers of the paid teacher, against the emulator: what is told, what is billed, what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.unit.test_paid_teacher import PRICES, TEACHER

from potstill.errors import TeacherError
from potstill.ledger import Ledger
from potstill.records import Message
from potstill.teacher.calls import TeacherRequest, build_request
from potstill.teacher.emulator import EmulatorSettings, running
from potstill.teacher.hearing import Hearing
from potstill.teacher.paid import Accounts, PaidTeacher
from potstill.teacher.scripted import ScriptedTransport, reply_200
from potstill.teacher.transport import GeminiTransport, Received, Transport
from potstill.teacher.wire import parse_reply

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
QUESTION = "What does a GPU do all day?"


def request(question: str = QUESTION) -> TeacherRequest:
    """A question that may be answered at length."""
    return build_request(
        TEACHER, [Message(role="user", content=question)], temperature=0, max_output_tokens=100, role="expert"
    )


@asynccontextmanager
async def paying(folder: Path, transport: Transport) -> AsyncIterator[PaidTeacher]:
    """A paid teacher on a ledger in a folder."""
    with Ledger.open(folder / "ledger.sqlite3", Decimal(1)) as ledger:
        try:
            yield PaidTeacher(TEACHER, Accounts(ledger, PRICES, "infer"), transport)
        finally:
            await transport.close()


def gemini(url: str) -> GeminiTransport:
    """Gemini's own transport to an emulator."""
    return GeminiTransport(TEACHER.model_copy(update={"base_url": url}), SecretStr("any"))


async def test_streamed_answer_is_billed_and_kept_like_a_whole_one(tmp_path: Path) -> None:
    """The pieces told make up the answer; usage and price are those of the whole one; it is paid for once."""
    told: list[str] = []
    with running(EmulatorSettings(answer_tokens=60, latency_s=0)) as emulator:
        async with paying(tmp_path / "streamed", gemini(emulator.url)) as teacher:
            streamed = await teacher.stream(request(), told.append)
            again = await teacher.ask(request())
            assert teacher.ledger.reserved() == 0
        async with paying(tmp_path / "whole", gemini(emulator.url)) as teacher:
            whole = await teacher.ask(request())
        assert len(emulator.log()) == 2
    assert len(told) > 3
    assert "".join(told) == streamed.text == whole.text == again.text
    assert (streamed.finish_reason, streamed.usage, streamed.cost_usd) == ("STOP", whole.usage, whole.cost_usd)
    assert again.reused


async def test_stream_that_breaks_may_have_been_paid_and_is_not_repeated(tmp_path: Path) -> None:
    """Once text was told, nothing is sent again: the worst case stays held, and the question fails."""
    told: list[str] = []
    with running(EmulatorSettings(answer_tokens=60, latency_s=0, faults={"mid-stream": 1.0})) as emulator:
        async with paying(tmp_path, gemini(emulator.url)) as teacher:
            with pytest.raises(TeacherError, match="broke off"):
                await teacher.stream(request(), told.append)
            (attempt,) = teacher.ledger.attempts()
            assert teacher.ledger.reserved() == attempt.reserved_usd > 0
        assert len(emulator.log()) == 1
    assert told
    assert (attempt.status, attempt.reason) == ("open", "broke off")


class Halting(ScriptedTransport):
    """Passes the first half of an answer on, then waits for ever."""

    def __init__(self) -> None:
        super().__init__([reply_200("whole")], delay_s=3600)
        self.halted = asyncio.Event()

    async def send(self, request: TeacherRequest) -> Received:
        """Wait."""
        self.halted.set()
        return await super().send(request)

    async def stream(self, request: TeacherRequest, hearing: Hearing) -> Received:
        """Say half, count it, and wait."""
        hearing.take(reply_200("half ", finish_reason="", input_tokens=10, output_tokens=5).body)
        return await self.send(request)


async def test_cancelled_stream_is_held_at_its_worst_case(tmp_path: Path) -> None:
    """Cut off by its asker, more may be billed than had been counted: its worst case stays held; it is no answer for later."""
    transport = Halting()
    async with paying(tmp_path, transport) as teacher:
        told: list[str] = []
        asking = asyncio.create_task(teacher.stream(request(), told.append))
        await transport.halted.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        (attempt,) = teacher.ledger.attempts()
        assert (told, attempt.status, attempt.reason) == (["half "], "open", "cancelled")
        assert teacher.ledger.spent() == 0
        assert teacher.ledger.reserved() == attempt.reserved_usd > Decimal("0.00006")
        assert teacher.stored(request()) is None
        assert len(transport.sent) == 1


async def test_cancelled_call_may_have_been_paid(tmp_path: Path) -> None:
    """A call of which nothing came back stays held at its worst case, and says why; no other request leaves."""
    transport = Halting()
    async with paying(tmp_path, transport) as teacher:
        asking = asyncio.create_task(teacher.ask(request()))
        await transport.halted.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        (attempt,) = teacher.ledger.attempts()
        assert (attempt.status, attempt.reason) == ("open", "cancelled")
        assert teacher.ledger.reserved() == attempt.reserved_usd > 0
        assert len(transport.sent) == 1


async def test_one_asker_leaves_the_other_gets_the_answer(tmp_path: Path) -> None:
    """Two askers share a request; when one of them goes, the other's answer is not cut off."""
    transport = ScriptedTransport([reply_200("yes")], delay_s=0.05)
    async with paying(tmp_path, transport) as teacher:
        first, second = (asyncio.create_task(teacher.ask(request())) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second).text == "yes"
        assert first.cancelled()
        assert len(transport.sent) == 1


def test_pieces_make_one_reply() -> None:
    """Texts and thoughts are joined, the last counts and the last finish reason hold; what is no event is left out."""
    hearing = Hearing(lambda _: None)
    assert hearing.whole() is None
    for event in (reply_200("a ", finish_reason="", output_tokens=1).body, "no event", "[]", reply_200("b").body):
        hearing.take(event)
    reply = parse_reply(hearing.whole() or "")
    assert reply is not None
    assert (reply.text, reply.finish_reason, reply.usage.output_tokens) == ("a b", "STOP", 20)


def test_a_character_cut_in_two_can_be_kept() -> None:
    """Where two events share a surrogate pair, the reply can be written down and has the character."""
    hearing = Hearing(lambda _: None)
    for half in ("\ud83d", "\ude00"):
        hearing.take(reply_200(half).body)
    raw = hearing.whole() or ""
    raw.encode()
    reply = parse_reply(raw)
    assert reply is not None
    assert reply.text == "\U0001f600"
