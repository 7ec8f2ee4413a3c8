"""The paid call: ledger, budget, pacing, sending, retrying, settling. The thin shell around the pure decisions."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus

from potstill.config import TeacherConfig
from potstill.errors import TeacherError, UnknownModelError
from potstill.ledger import Cap, Intent, Ledger, LedgerView, Settlement, from_pico, to_pico
from potstill.pricing.book import PriceBook, Priced
from potstill.records import Usage
from potstill.teacher.calls import Answer, TeacherRequest
from potstill.teacher.hearing import Hearing, Tell
from potstill.teacher.line import Entry, Line
from potstill.teacher.pacing import Limits
from potstill.teacher.retrying import Failure, GiveUp, Keep, Retry, Stop, after_failure, after_reply, learned_limits
from potstill.teacher.transport import NO_CONNECTION, REACH_HINT, Received, StreamingTransport, Transport
from potstill.teacher.wire import Reply, parse_reply

Decision = Keep | Retry | GiveUp | Stop

LOOK_EVERY_S = 0.1
"""How often one who waits for another process looks at the ledger: 0.3 ms each."""
SLACK_S = 10.0
"""How much longer than its deadline an attempt of another process may take until its end is in the ledger."""
FLEX_SHEDS = 2
"""Times that flex may shed a request before it is sent at the standard price."""


@dataclass(frozen=True)
class Accounts:
    """Where an attempt is written down and priced; `cap`: what the command may cost in all runs."""

    ledger: Ledger
    book: PriceBook
    command: str
    cap: Cap | None = None


@dataclass
class Tries:
    """What has become of one request so far: attempts, overloads among them, and replies of no use."""

    attempt: int = 0
    sheds: int = 0
    empty: int = 0
    hearing: Hearing | None = None


@dataclass
class _Flight:
    """A request under way, how many wait for it, and whether one of them has its answer, and with it the bill."""

    task: asyncio.Task[Answer]
    waiting: int = 0
    is_billed: bool = False


class PaidTeacher:
    """Answers requests through a transport; every attempt stands in the ledger before it leaves."""

    def __init__(
        self, teacher: TeacherConfig, accounts: Accounts, transport: Transport, *, max_requests: int | None = None
    ) -> None:
        self._teacher = teacher
        self._accounts = accounts
        self._transport = transport
        self._line = Line(accounts.ledger, scope(teacher), limits(teacher), teacher.max_concurrency, max_requests)
        self._patience_s = teacher.timeout_s + SLACK_S
        self._flights: dict[str, _Flight] = {}

    @property
    def ledger(self) -> Ledger:
        """The ledger that the attempts stand in."""
        return self._accounts.ledger

    def stored(self, request: TeacherRequest) -> Answer | None:
        """The answer that was paid for earlier, parsed anew from its raw reply."""
        return stored_answer(self.ledger, request)

    async def ask(self, request: TeacherRequest) -> Answer:
        """Answer one request, from the ledger where it was paid for already.

        Equal requests in flight share one call. Raises TeacherError when this request failed for good; BudgetError,
        QuotaError, KeyRefusedError or UsageError when no further request can succeed.
        """
        return await self._ask(request, None)

    async def stream(self, request: TeacherRequest, tell: Tell) -> Answer:
        """Like `ask`, and pass the text on while it arrives, where the transport can and nobody else has asked already.

        Once text was passed on, a stream that breaks is not tried again: TeacherError. One that breaks or is cancelled
        stays held at its worst case: Gemini may have written, and bill, more than it had sent.
        """
        return await self._ask(request, tell)

    async def _ask(self, request: TeacherRequest, tell: Tell | None) -> Answer:
        if (known := self.stored(request)) is not None:
            return known
        flight = self._flights.get(request.key)
        if flight is None:
            flight = self._flights[request.key] = _Flight(asyncio.create_task(self._pay(request, tell)))
            flight.task.add_done_callback(lambda _: self._land(request.key, flight))
        flight.waiting += 1
        try:
            answer = await asyncio.shield(flight.task)
            if flight.is_billed:
                return answer.model_copy(update={"reused": True})
            flight.is_billed = True
            return answer
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():  # nobody is left who wants it
                self._land(request.key, flight)  # who asks from now on must not be cancelled with it
                flight.task.cancel()
                await asyncio.wait([flight.task])

    def _land(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def stop(self) -> None:
        """Send nothing more; who waits gets StoppedError, what is in flight is settled."""
        self._line.stop()

    async def _pay(self, request: TeacherRequest, tell: Tell | None) -> Answer:
        tries = Tries()
        while True:
            tries.attempt += 1
            tries.hearing = Hearing(tell) if tell and isinstance(self._transport, StreamingTransport) else None
            decision, answer = await self._attempt(self._with_service(request, tries.sheds), tries)
            match decision:
                case Keep() if answer is not None:
                    return answer
                case Retry(after_s, _, pause_all, overload, empty):
                    tries.sheds += overload
                    tries.empty += empty
                    if not pause_all:
                        await self._line.rest(after_s)
                case GiveUp(reason, detail):
                    hint = REACH_HINT if reason.startswith(NO_CONNECTION) else None
                    raise TeacherError(detail, reason=reason, hint=hint)
                case Stop(_, error):
                    raise error

    def _with_service(self, request: TeacherRequest, sheds: int) -> TeacherRequest:
        """Flex sheds load; what it has shed often enough goes at the standard price."""
        service = self._teacher.service
        if service == "flex" and self._teacher.flex_fallback and sheds >= FLEX_SHEDS:
            service = "standard"
        return request if request.service == service else request.model_copy(update={"service": service})

    async def _attempt(self, request: TeacherRequest, tries: Tries) -> tuple[Decision, Answer | None]:
        entry = await self._place(request)
        if isinstance(entry, Answer):
            return Keep(), entry
        try:
            started = time.time()
            try:
                received = await self._send(request, tries.hearing)
            except asyncio.CancelledError:  # what a stream had counted by then is no bound on what is billed for it
                await self.ledger.lose(entry.ticket.attempt, "cancelled")
                raise
            latency_s = time.time() - started
            if received.status != HTTPStatus.OK and tries.hearing is not None and tries.hearing.heard:
                await self.ledger.lose(entry.ticket.attempt, "broke off")
                return GiveUp("stream", "the answer broke off"), None
            if received.status == HTTPStatus.OK:
                return await self._settle(request, entry, received.body, latency_s, tries)
            return await self._record_failure(entry, received, started, tries.attempt), None
        finally:
            self._line.leave()

    async def _place(self, request: TeacherRequest) -> Entry | Answer:
        """A request's turn to leave; or its answer, where another process has paid for it, or is paying, meanwhile.

        Two processes share no event, only the ledger: who waits for the other looks there every now and then.
        """
        intent = self._intent(request)
        while True:
            entry = await self._line.enter(intent, request.input_tokens)
            if isinstance(entry, Entry):
                return entry
            while self.ledger.under_way(request.key, self._patience_s):
                await self._line.rest(LOOK_EVERY_S)
            if (known := self.stored(request)) is not None:
                return known
            if self.ledger.answer(request.key) is not None:  # of a form that cannot be read any more
                intent = replace(intent, patience_s=None)

    async def _send(self, request: TeacherRequest, hearing: Hearing | None) -> Received:
        if hearing is not None and isinstance(self._transport, StreamingTransport):
            return await self._transport.stream(request, hearing)
        return await self._transport.send(request)

    async def _settle(
        self, request: TeacherRequest, entry: Entry, body: str, latency_s: float, tries: Tries
    ) -> tuple[Decision, Answer | None]:
        """Write down a reply with status 200: an answer, or one that was billed for nothing."""
        reply = parse_reply(body)
        decision = after_reply(reply, tries.empty, random.random())  # noqa: S311  (jitter)
        if reply is None:
            await self.ledger.lose(entry.ticket.attempt, "unreadable reply")
            return decision, None
        priced = priced_reply(self._accounts.book, reply, request.model, request.service or self._teacher.service)
        if reply.usage == Usage():
            priced = uncounted(from_pico(entry.need.worst_pico))
        settlement = Settlement(body, reply.usage, priced.usd, priced.price_id, latency_s)
        change = self._line.settlement(entry, reply.usage.input_tokens, to_pico(priced.usd))
        self._line.throttle.succeeded()
        if isinstance(decision, Keep):
            await self.ledger.settle(entry.ticket.attempt, settlement, change)
            return decision, answer_of(request, reply, priced, latency_s)
        await self.ledger.fail(entry.ticket.attempt, f"empty reply ({reply.finish_reason})", settlement, change)
        return decision, None

    async def _record_failure(self, entry: Entry, received: Received, started: float, attempt: int) -> Decision:
        failure = Failure(received.lost or "http", received.status, received.body)
        jitter = random.random()  # noqa: S311  (spreads retries; nothing secret)
        decision = after_failure(failure, attempt, self._teacher.max_attempts, datetime.now(UTC), jitter)
        if received.status is None and not received.unsent:
            await self.ledger.lose(entry.ticket.attempt, received.lost or "lost")
        else:
            nothing = self._line.settlement(entry, 0, 0)
            await self.ledger.fail(entry.ticket.attempt, getattr(decision, "reason", "failed"), change=nothing)
        if isinstance(decision, Retry) and decision.overload:
            self._line.throttle.overloaded(started, time.time())
        if received.status == HTTPStatus.TOO_MANY_REQUESTS:
            pause_s = decision.after_s if isinstance(decision, Retry) and decision.pause_all else 0.0
            day_over = isinstance(decision, Stop) and decision.reason == "daily quota"
            await self._line.heed(learned_limits(received.body), pause_s=pause_s, day_over=day_over)
        return decision

    def _intent(self, request: TeacherRequest) -> Intent:
        service = request.service or self._teacher.service
        intent = intent_of(request, service, self._accounts, request.input_tokens)
        return replace(intent, patience_s=self._patience_s)


def scope(teacher: TeacherConfig) -> str:
    """Under which name processes share limits: the server, the model and the tier that the limits belong to."""
    return f"pace:{teacher.base_url or teacher.provider}|{teacher.model}|{teacher.tier}"


def limits(teacher: TeacherConfig) -> Limits:
    """The configured limits."""
    dollars = teacher.usd_per_10min
    return Limits(teacher.rpm, teacher.tpm, teacher.rpd, None if dollars is None else to_pico(dollars))


def intent_of(request: TeacherRequest, service: str, accounts: Accounts, guess: int) -> Intent:
    """What goes into the ledger before a request leaves, with its worst case."""
    generation = request.body.get("generationConfig", {})
    worst = accounts.book.worst_case(
        request.model,
        service,
        datetime.now(UTC).date(),
        input_tokens=worst_input_tokens(request, guess),
        max_output_tokens=generation["maxOutputTokens"],
        thinking_budget=generation.get("thinkingConfig", {}).get("thinkingBudget"),
    )
    return Intent(
        key=request.key,
        command=accounts.command,
        role=request.role,
        model=request.model,
        service=service,
        request=request.canonical.decode(),
        worst_usd=worst,
        cap=accounts.cap,
    )


def priced_reply(book: PriceBook, reply: Reply, model: str, service: str) -> Priced:
    """The price of the model that answered; of the model that was asked where the book does not know the former."""
    today = datetime.now(UTC).date()
    try:
        return book.cost(reply.usage, reply.model or model, service, today)
    except UnknownModelError:
        return book.cost(reply.usage, model, service, today)


def uncounted(reserved_usd: Decimal) -> Priced:
    """The price of a reply that counts nothing: it was not free, so that what was reserved for it is taken as spent."""
    return Priced(usd=reserved_usd, price_id="worst case: no usage in the reply")


def stored_answer(ledger: Ledger | LedgerView, request: TeacherRequest) -> Answer | None:
    """What a ledger holds for a request, parsed anew from its raw reply; None where nothing was paid for yet."""
    found = ledger.answer(request.key)
    reply = parse_reply(found.reply) if found else None
    if found is None or reply is None:
        return None
    priced = Priced(usd=found.cost_usd, price_id=found.price_id)
    answer = answer_of(request, reply, priced, found.latency_s)
    return answer.model_copy(update={"answered_at": found.finished_at, "reused": True})


def worst_input_tokens(request: TeacherRequest, guess: int) -> int:
    """An upper bound of the input: no tokenizer makes more tokens than the text has bytes."""
    return max(guess, len(request.canonical_body))


def answer_of(request: TeacherRequest, reply: Reply, priced: Priced, latency_s: float) -> Answer:
    """An answer that was paid for just now."""
    return Answer(
        key=request.key,
        text=reply.text,
        finish_reason=reply.finish_reason,
        model=reply.model or request.model,
        usage=reply.usage,
        cost_usd=priced.usd,
        price_id=priced.price_id,
        latency_s=latency_s,
        answered_at=datetime.now(UTC),
        reused=False,
    )


def free_answer(request: TeacherRequest, text: str, *, finish_reason: str = "STOP") -> Answer:
    """An answer that cost nothing, as the shipped fakes give it."""
    reply = Reply(text=text, finish_reason=finish_reason, usage=Usage(), model=request.model)
    return answer_of(request, reply, Priced(usd=Decimal(0), price_id="free"), 0.0)
