"""The paid call against scripted and drawn transports: what is sent, what is held, and what it comes to."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.config import PricesConfig, TeacherConfig
from potstill.errors import BudgetError, QuotaError, TeacherError
from potstill.ledger import Change, Intent, Ledger
from potstill.pricing.book import load_prices
from potstill.records import Message
from potstill.teacher.calls import TeacherRequest, build_request
from potstill.teacher.line import Line
from potstill.teacher.pacing import Limits
from potstill.teacher.paid import Accounts, PaidTeacher
from potstill.teacher.scripted import ScriptedTransport, reply_200, reply_error, reply_quota
from potstill.teacher.transport import Received, Transport

TEACHER = TeacherConfig(rpm=None, max_attempts=3)
PRICES = load_prices(PricesConfig(overrides={TEACHER.model: {"input": Decimal(1), "output": Decimal(10)}}))
"""A dollar and ten dollars a million tokens."""
MINUTE = "GenerateRequestsPerMinutePerProjectPerModel"
DAY = "GenerateRequestsPerDayPerProjectPerModel"


def request(text: str, sample: int = 0) -> TeacherRequest:
    """A question that may be answered with a hundred tokens."""
    return build_request(
        TEACHER, [Message(role="user", content=text)], temperature=1, max_output_tokens=100, sample=sample
    )


def overload(status: int = 503) -> Received:
    """A lack of capacity."""
    return reply_error(status, "UNAVAILABLE", "The model is overloaded.")


@asynccontextmanager
async def paying(
    folder: Path, transport: Transport, *, max_usd: str | None = None, max_requests: int | None = None, **teacher: Any
) -> AsyncIterator[PaidTeacher]:
    """A paid teacher on a ledger in a folder."""
    with Ledger.open(folder / "ledger.sqlite3", Decimal(max_usd) if max_usd else None) as ledger:
        config = TEACHER.model_copy(update=teacher)
        yield PaidTeacher(config, Accounts(ledger, PRICES, "generate"), transport, max_requests=max_requests)


async def test_an_answer_is_paid_for_once(tmp_path: Path) -> None:
    """Equal requests in flight share a call and one pays, later ones are answered from the ledger; a new sample is a new call."""
    transport = ScriptedTransport([reply_200("yes", input_tokens=1000, output_tokens=50)], delay_s=0.01)
    async with paying(tmp_path, transport) as teacher:
        first, second = await asyncio.gather(teacher.ask(request("a")), teacher.ask(request("a")))
        third = await teacher.ask(request("a"))
        assert (first.text, second.text, third.text) == ("yes",) * 3
        assert (first.reused, second.reused, third.reused) == (False, True, True)
        assert first.cost_usd == Decimal("0.0015")
        await teacher.ask(request("a", sample=1))
        assert teacher.ledger.spent() == Decimal("0.003")
    assert len(transport.sent) == 2


async def test_a_lost_reply_is_possibly_paid_and_asked_again(tmp_path: Path) -> None:
    """A timeout and a cut-off body stay in the ledger with their worst case, what never left does not; the next answers."""
    unsent = Received(None, lost="no connection", unsent=True)
    transport = ScriptedTransport([unsent, Received(None, lost="timeout"), Received(200, '{"candi'), reply_200("yes")])
    async with paying(tmp_path, transport) as teacher:
        assert (await teacher.ask(request("a"))).text == "yes"
        assert [row.reason for row in teacher.ledger.open_attempts()] == ["timeout", "unreadable reply"]
        assert teacher.ledger.reserved() > 0


async def test_a_billed_empty_reply_costs_and_ends_as_failed(tmp_path: Path) -> None:
    """STOP without text is billed each time; after three it is a failure with its reason, and a rerun asks again."""
    empty = reply_200("", input_tokens=100, output_tokens=0)
    async with paying(tmp_path, ScriptedTransport([empty])) as teacher:
        with pytest.raises(TeacherError) as caught:
            await teacher.ask(request("a"))
        assert caught.value.reason == "empty"
        assert teacher.ledger.spent() == Decimal("0.0003")
        assert teacher.stored(request("a")) is None


async def test_other_failures_use_up_no_try_at_an_empty_reply(tmp_path: Path) -> None:
    """After two overloads an empty reply is still asked again twice."""
    script = [overload(), overload(), reply_200(""), reply_200(""), reply_200("yes")]
    async with paying(tmp_path, ScriptedTransport(script), max_attempts=9) as teacher:
        assert (await teacher.ask(request("a"))).text == "yes"


async def test_a_reply_that_counts_nothing_costs_what_was_reserved(tmp_path: Path) -> None:
    """An answer without usage is kept, at the worst case and not for nothing."""
    uncounted = reply_200("yes", input_tokens=0, output_tokens=0)
    async with paying(tmp_path, ScriptedTransport([uncounted])) as teacher:
        answer = await teacher.ask(request("a"))
        assert answer.cost_usd == teacher.ledger.spent() > Decimal("0.001")


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "MAX_TOKENS"])
async def test_a_final_reply_is_never_repeated(tmp_path: Path, reason: str) -> None:
    """A refusal and an answer without text at the token limit are kept and stored: one call, now and later."""
    transport = ScriptedTransport([reply_200("", finish_reason=reason)])
    async with paying(tmp_path, transport) as teacher:
        assert (await teacher.ask(request("a"))).finish_reason == reason
        assert (await teacher.ask(request("a"))).reused
    assert len(transport.sent) == 1


async def test_the_day_that_the_teacher_ended_is_remembered(tmp_path: Path) -> None:
    """After a per-day 429 the next process on the ledger sends nothing and says the same."""
    transport = ScriptedTransport([reply_quota((DAY, 20), retry_s=5)])
    for _ in range(2):
        async with paying(tmp_path, transport) as teacher:
            with pytest.raises(QuotaError) as caught:
                await teacher.ask(request("a"))
            assert caught.value.retry_at is not None
    assert len(transport.sent) == 1


async def test_limits_are_learned_and_kept(tmp_path: Path) -> None:
    """A 429 names the true limit: the request goes again as advised, and the next process keeps to the limit too."""
    transport = ScriptedTransport([reply_quota((MINUTE, 600), retry_s=0.05), reply_200("yes")])
    async with paying(tmp_path, transport) as teacher:
        assert (await teacher.ask(request("a"))).text == "yes"
    async with paying(tmp_path, transport) as teacher:
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(*(teacher.ask(request(str(number))) for number in range(8)))
        assert loop.time() - started >= 0.3  # ten a second, but for those that may catch up
    assert len(transport.sent) == 10


async def test_two_openers_of_one_ledger_share_its_limits(tmp_path: Path) -> None:
    """As two processes do: together they keep to the requests a minute, and each gets its answers."""
    transport = ScriptedTransport([reply_200("yes")])
    async with paying(tmp_path, transport, rpm=600) as one, paying(tmp_path, transport, rpm=600) as other:
        loop = asyncio.get_running_loop()
        started = loop.time()
        asked = [teacher.ask(request(f"{name}{n}")) for n in range(8) for name, teacher in (("a", one), ("b", other))]
        await asyncio.gather(*asked)
        assert loop.time() - started >= 1.1  # ten a second for both, but for the few that may catch up
    assert len(transport.sent) == 16


async def test_overload_is_retried_and_given_up(tmp_path: Path) -> None:
    """503s back off and end as a failure of this request alone, billed nothing."""
    async with paying(tmp_path, ScriptedTransport([overload()]), max_attempts=2) as teacher:
        with pytest.raises(TeacherError, match="overloaded"):
            await teacher.ask(request("a"))
        assert (teacher.ledger.spent(), teacher.ledger.reserved()) == (0, 0)


async def test_flex_falls_back_to_standard(tmp_path: Path) -> None:
    """What flex has shed twice goes at the standard price, and stands so in the ledger."""
    transport = ScriptedTransport([overload(), overload(429), reply_200("yes")])
    async with paying(tmp_path, transport, service="flex") as teacher:
        assert (await teacher.ask(request("a"))).text == "yes"
        assert [row.service for row in teacher.ledger.attempts()] == ["flex", "flex", "standard"]
    assert [sent.service for sent in transport.sent] == ["flex", "flex", "standard"]


async def test_a_run_stops_at_its_number_of_requests(tmp_path: Path) -> None:
    """With max_requests the next request is refused, and nothing of it is written."""
    async with paying(tmp_path, ScriptedTransport([reply_200("yes")]), max_requests=2) as teacher:
        outcomes = await asyncio.gather(*(teacher.ask(request(str(n))) for n in range(4)), return_exceptions=True)
        assert sum(isinstance(outcome, BudgetError) for outcome in outcomes) == 2
        assert len(list(teacher.ledger.attempts())) == 2


async def test_money_in_flight_is_waited_for(tmp_path: Path) -> None:
    """A budget that holds one worst case at a time still pays for several answers, one after the other."""
    transport = ScriptedTransport([reply_200("yes", input_tokens=10, output_tokens=1)], delay_s=0.005)
    async with paying(tmp_path, transport, max_usd="0.0013") as teacher:
        await asyncio.gather(*(teacher.ask(request(str(number))) for number in range(5)))
        assert teacher.ledger.spent() == Decimal("0.0001")


async def test_a_cancelled_request_leaves_its_place(tmp_path: Path) -> None:
    """One that is cancelled while it waits for its turn holds no money, and those behind it go on."""
    transport = ScriptedTransport([reply_200("yes")], delay_s=0.02)
    async with paying(tmp_path, transport, max_concurrency=1) as teacher:
        tasks = [asyncio.create_task(teacher.ask(request(str(number)))) for number in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[1], asyncio.CancelledError)
        assert teacher.ledger.reserved() == 0
    assert len(transport.sent) == 2


@pytest.mark.parametrize("times", [1, 2])
async def test_a_turn_that_comes_too_late_is_given_back(tmp_path: Path, times: int) -> None:
    """A request that is cancelled just as its turn is granted, or again meanwhile, leaves neither place nor money behind."""
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        line = Line(ledger, "pace", Limits(), max_concurrency=1)
        for number in range(2):
            intent = Intent(str(number), "infer", None, "m", "standard", "{}", Decimal("0.01"))
            entering = asyncio.create_task(line.enter(intent, 1))
            await asyncio.sleep(0)
            (waiter,) = line._waiting
            async with asyncio.timeout(10):
                while not waiter.turn.done():  # noqa: ASYNC110  (the very turn of the loop counts)
                    await asyncio.sleep(0)
            for _ in range(times):
                entering.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await entering
        await ledger.share(Change("all before is written", lambda _: None))
        assert ledger.reserved() == 0
        assert [row.reason for row in ledger.attempts()] == ["not sent", "not sent"]


class SlowToEnd(ScriptedTransport):
    """A transport whose first request takes a while to end when it is cancelled."""

    def __init__(self, replies: list[Received]) -> None:
        super().__init__(replies)
        self.under_way = asyncio.Event()

    async def send(self, request: TeacherRequest) -> Received:
        """Answer; the first time, be cancelled slowly."""
        if self.sent:
            return await super().send(request)
        self.sent.append(request)
        self.under_way.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
        raise AssertionError


async def test_who_asks_while_another_is_cancelled_gets_an_answer(tmp_path: Path) -> None:
    """An equal request that comes while a cancelled one still ends is not cancelled with it; the lost one holds its money."""
    transport = SlowToEnd([reply_200("yes")])
    async with paying(tmp_path, transport) as teacher:
        first = asyncio.create_task(teacher.ask(request("a")))
        await transport.under_way.wait()
        first.cancel()
        await asyncio.sleep(0)
        assert (await teacher.ask(request("a"))).text == "yes"
        with pytest.raises(asyncio.CancelledError):
            await first
        assert [(row.status, row.reason) for row in teacher.ledger.attempts()] == [
            ("open", "cancelled"),
            ("done", None),
        ]


class Drawn:
    """A transport that answers by drawn delays and replies, and looks at the books before each reply."""

    def __init__(self, steps: list[tuple[float, str, int]], watch: Callable[[], None]) -> None:
        self._steps = steps
        self._watch = watch
        self.count = 0

    async def send(self, request: TeacherRequest) -> Received:
        """Take the next step: wait, look, answer."""
        delay_s, kind, tokens = self._steps[self.count % len(self._steps)]
        self.count += 1
        await asyncio.sleep(delay_s)
        self._watch()
        size = len(json.dumps(request.body))
        if kind == "ok":
            return reply_200("yes", input_tokens=size * tokens // 100, output_tokens=tokens)
        if kind == "empty":
            return reply_200("", input_tokens=size * tokens // 100, output_tokens=tokens)
        return {
            "lost": Received(None, lost="timeout"),
            "torn": Received(200, '{"candidates": ['),
            "quota": reply_quota((MINUTE, 100_000), retry_s=0.001),
            "down": reply_error(400, "INVALID_ARGUMENT", "bad"),
        }[kind]

    async def close(self) -> None:
        """Nothing to let go of."""


STEPS = st.tuples(
    st.floats(0, 0.004),
    st.sampled_from(["ok", "ok", "ok", "empty", "lost", "torn", "quota", "down"]),
    st.integers(0, 100),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(STEPS, min_size=1, max_size=12),
    kills_s=st.lists(st.floats(0.001, 0.03), min_size=1, max_size=3),
    budget=st.integers(1, 12),
    concurrency=st.integers(1, 8),
)
def test_spent_and_reserved_never_pass_the_budget(
    steps: list[tuple[float, str, int]], kills_s: list[float], budget: int, concurrency: int
) -> None:
    """Random latencies, usages, failures and kills in the middle: at every moment spent + reserved is within it."""
    limit = Decimal(budget) * Decimal("0.0012")

    async def run(folder: Path, kill_s: float) -> None:
        def watch() -> None:
            assert ledger.spent() + ledger.reserved() <= limit

        with Ledger.open(folder / "ledger.sqlite3", limit) as ledger:
            config = TEACHER.model_copy(update={"max_concurrency": concurrency})
            teacher = PaidTeacher(config, Accounts(ledger, PRICES, "generate"), Drawn(steps, watch))
            tasks = [asyncio.create_task(teacher.ask(request(str(number)))) for number in range(12)]
            with suppress(TimeoutError):
                async with asyncio.timeout(kill_s):
                    await asyncio.gather(*tasks, return_exceptions=True)
            for task in tasks:
                task.cancel()
            failures = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [error for error in failures if isinstance(error, AssertionError)]
        with Ledger.open(folder / "ledger.sqlite3", limit) as ledger:  # everything that was on its way is written
            watch()
            rows = list(ledger.attempts())
            assert ledger.spent() == sum(row.cost_usd for row in rows)
            assert ledger.reserved() == sum(row.reserved_usd for row in rows if row.status == "open")

    with tempfile.TemporaryDirectory() as folder:
        for kill_s in kills_s:
            asyncio.run(run(Path(folder), kill_s))
