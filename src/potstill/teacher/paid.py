"""The paid call: ledger, budget, pacing, sending, retrying, settling. The thin shell around the pure decisions."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus

from potstill.config import Config, Secrets, TeacherConfig
from potstill.errors import ConfigError, KeyRefusedError, QuotaError, TeacherError, UnknownModelError
from potstill.ledger import Intent, Ledger, Settlement
from potstill.pricing.book import PriceBook, Priced, load_prices
from potstill.pricing.tokens import estimate_tokens
from potstill.records import Usage, canonical_json
from potstill.teacher.calls import Answer, TeacherRequest
from potstill.teacher.pacing import Limits, Pacer, day_start, next_day
from potstill.teacher.retrying import Failure, GiveUp, Keep, Retry, Stop, after_failure, after_reply
from potstill.teacher.transport import GeminiTransport, Received, Transport
from potstill.teacher.wire import Reply, parse_reply
from potstill.workspace import Workspace

Decision = Keep | Retry | GiveUp | Stop


@dataclass(frozen=True)
class Accounts:
    """Where an attempt is written down and priced."""

    ledger: Ledger
    book: PriceBook
    command: str


class PaidTeacher:
    """Answers requests through a transport; every attempt stands in the ledger before it leaves."""

    def __init__(self, teacher: TeacherConfig, accounts: Accounts, transport: Transport) -> None:
        self._teacher = teacher
        self._accounts = accounts
        self._transport = transport
        sent = accounts.ledger.sent_since(teacher.model, day_start(datetime.now(UTC)))
        self._pacer = Pacer(Limits(teacher.rpm, teacher.tpm, teacher.rpd), sent_today=sent)
        self._slots = asyncio.Semaphore(teacher.max_concurrency)
        self._flights: dict[str, asyncio.Task[Answer]] = {}

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
        if (known := self.stored(request)) is not None:
            return known
        flight = self._flights.get(request.key)
        if flight is None:
            flight = asyncio.create_task(self._pay(request))
            self._flights[request.key] = flight
            flight.add_done_callback(lambda _: self._flights.pop(request.key, None))
        return await flight

    async def _pay(self, request: TeacherRequest) -> Answer:
        async with self._slots:
            for attempt in range(1, self._teacher.max_attempts + 1):
                decision, answer = await self._attempt(request, attempt)
                match decision:
                    case Keep() if answer is not None:
                        return answer
                    case Retry(after_s, _, pause_all):
                        if pause_all:
                            self._pacer.pause(time.monotonic() + after_s)
                        else:
                            await asyncio.sleep(after_s)
                    case GiveUp(reason, detail):
                        raise TeacherError(detail, reason=reason)
                    case Stop(_, error):
                        raise error
        message = f"no answer after {self._teacher.max_attempts} attempts"
        raise TeacherError(message, reason="attempts")

    async def _attempt(self, request: TeacherRequest, attempt: int) -> tuple[Decision, Answer | None]:
        input_tokens = estimate_tokens(canonical_json(request.body).decode())
        await self._wait_for_turn(input_tokens)
        identity = await self.ledger.reserve(self._intent(request, input_tokens))
        started = time.monotonic()
        received = await self._transport.send(request)
        latency_s = time.monotonic() - started
        if received.status == HTTPStatus.OK:
            return await self._settle(request, identity, received.body, latency_s, attempt)
        return await self._record_failure(identity, received, attempt), None

    async def _settle(
        self, request: TeacherRequest, identity: int, body: str, latency_s: float, attempt: int
    ) -> tuple[Decision, Answer | None]:
        """Write down a reply with status 200: an answer, or one that was billed for nothing."""
        reply = parse_reply(body)
        decision = after_reply(reply, attempt, self._teacher.max_attempts, random.random())  # noqa: S311  (jitter)
        if reply is None:
            await self.ledger.lose(identity, "unreadable reply")
            return decision, None
        priced = self._priced(reply)
        settlement = Settlement(body, reply.usage, priced.usd, priced.price_id, latency_s)
        if isinstance(decision, Keep):
            await self.ledger.settle(identity, settlement)
            return decision, _answer(request, reply, priced, latency_s, reused=False)
        await self.ledger.fail(identity, f"empty reply ({reply.finish_reason})", settlement)
        return decision, None

    async def _record_failure(self, identity: int, received: Received, attempt: int) -> Decision:
        failure = Failure(received.lost or "http", received.status, received.body)
        jitter = random.random()  # noqa: S311  (spreads retries; nothing secret)
        decision = after_failure(failure, attempt, self._teacher.max_attempts, datetime.now(UTC), jitter)
        if received.status is None:
            await self.ledger.lose(identity, received.lost or "lost")
        else:
            await self.ledger.fail(identity, getattr(decision, "reason", "failed"))
        return decision

    async def _wait_for_turn(self, input_tokens: int) -> None:
        while not (wait := self._pacer.admit(time.monotonic(), input_tokens)).admitted:
            if wait.seconds == float("inf"):
                back = next_day(datetime.now(UTC))
                message = (
                    f"teacher.rpd of {self._teacher.rpd} requests is used up; the day ends at {back:%Y-%m-%d %H:%M} UTC"
                )
                raise QuotaError(message, retry_at=back, hint="run the same command again then")
            await asyncio.sleep(wait.seconds)

    def _intent(self, request: TeacherRequest, input_tokens: int) -> Intent:
        generation = request.body.get("generationConfig", {})
        worst = self._accounts.book.worst_case(
            request.model,
            self._teacher.service,
            datetime.now(UTC).date(),
            input_tokens=worst_input_tokens(request, input_tokens),
            max_output_tokens=generation["maxOutputTokens"],
            thinking_budget=generation.get("thinkingConfig", {}).get("thinkingBudget"),
        )
        return Intent(
            key=request.key,
            command=self._accounts.command,
            role=request.role,
            model=request.model,
            service=self._teacher.service,
            request={"model": request.model, "body": request.body, "sample": request.sample},
            worst_usd=worst,
        )

    def _priced(self, reply: Reply) -> Priced:
        """The price of the model that answered; of the model that was asked where the book does not know the former."""
        today = datetime.now(UTC).date()
        try:
            return self._accounts.book.cost(
                reply.usage, reply.model or self._teacher.model, self._teacher.service, today
            )
        except UnknownModelError:
            return self._accounts.book.cost(reply.usage, self._teacher.model, self._teacher.service, today)


def stored_answer(ledger: Ledger, request: TeacherRequest) -> Answer | None:
    """What a ledger holds for a request, parsed anew from its raw reply; None where nothing was paid for yet."""
    found = ledger.answer(request.key)
    reply = parse_reply(found.reply) if found else None
    if found is None or reply is None:
        return None
    priced = Priced(usd=found.cost_usd, price_id=found.price_id)
    return _answer(request, reply, priced, found.latency_s, answered_at=found.finished_at, reused=True)


def worst_input_tokens(request: TeacherRequest, estimate: int) -> int:
    """An upper bound of the input: no tokenizer makes more tokens than the text has bytes."""
    return max(estimate, len(canonical_json(request.body)))


@asynccontextmanager
async def open_teacher(
    config: Config, secrets: Secrets, workspace: Workspace, *, command: str
) -> AsyncIterator[PaidTeacher]:
    """The teacher of a config, with the workspace's ledger; raises KeyRefusedError where there is no key."""
    if config.teacher.service == "batch":
        message = "teacher.service: batch is priced by `cost`, but `generate` cannot send batches yet"
        raise ConfigError(message, hint="use standard, or flex at the same price")
    if secrets.teacher_key is None:
        message = "no API key: set GEMINI_API_KEY (or GOOGLE_API_KEY) in the environment"
        hint = "an emulator (`potstill emulator`) takes any text as a key"
        raise KeyRefusedError(message, hint=hint)
    workspace.create()
    book = load_prices(config.prices)
    book.price(config.teacher.model, config.teacher.service, datetime.now(UTC).date())  # refuse before anything is sent
    with Ledger.open(workspace.ledger, config.budget.max_usd) as ledger:
        transport = GeminiTransport(config.teacher, secrets.teacher_key)
        try:
            yield PaidTeacher(config.teacher, Accounts(ledger, book, command), transport)
        finally:
            await transport.close()


def _answer(
    request: TeacherRequest,
    reply: Reply,
    priced: Priced,
    latency_s: float,
    *,
    answered_at: datetime | None = None,
    reused: bool,
) -> Answer:
    return Answer(
        key=request.key,
        text=reply.text,
        finish_reason=reply.finish_reason,
        model=reply.model or request.model,
        usage=reply.usage,
        cost_usd=priced.usd,
        price_id=priced.price_id,
        latency_s=latency_s,
        answered_at=answered_at or datetime.now(UTC),
        reused=reused,
    )


def free_answer(request: TeacherRequest, text: str, *, finish_reason: str = "STOP") -> Answer:
    """An answer that cost nothing, as the shipped fakes give it."""
    reply = Reply(text=text, finish_reason=finish_reason, usage=Usage(), model=request.model)
    return _answer(request, reply, Priced(usd=Decimal(0), price_id="free"), 0.0, reused=False)
