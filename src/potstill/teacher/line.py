"""Requests wait here, in order, until the limits, the budget and the room in flight let them leave.

All of that is decided by the ledger in one transaction, shared with other processes; what stands here is who is next
and when to ask again: one timer, no polling, and as many admissions in one commit as are due.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from potstill.errors import BudgetError, PotstillError, QuotaError
from potstill.ledger import Admitted, Change, Elsewhere, Gate, Held, Intent, Ledger, Ticket, to_pico
from potstill.teacher.pacing import DayOver, Limits, Need, PaceState, Wait, admit, end_day, learn, pause, settle
from potstill.teacher.throttle import Throttle
from potstill.wording import counted


class StoppedError(Exception):
    """The user stopped the run: what is in flight is waited for, nothing else is sent."""


HORIZON_S = 0.05
"""How far ahead of its turn a request is admitted, so that one commit serves all that are due."""
BATCH = 64
"""Requests that ask at once at most."""


@dataclass(frozen=True)
class Entry:
    """A ticket with what it was counted as."""

    ticket: Ticket
    need: Need


@dataclass
class _Waiter:
    intent: Intent
    need: Need
    turn: asyncio.Future[Entry | Elsewhere] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Line:
    """The one way to the teacher for all requests of a process."""

    def __init__(
        self, ledger: Ledger, scope: str, limits: Limits, max_concurrency: int, max_requests: int | None = None
    ) -> None:
        self._ledger = ledger
        self._scope = scope
        self._limits = limits
        self._left = max_requests
        self._max_requests = max_requests
        self._waiting: deque[_Waiter] = deque()
        self._in_flight = 0
        self._ended = 0
        self._moved = asyncio.Event()
        self._stopped = asyncio.Event()
        self._server: asyncio.Task[None] | None = None
        self.throttle = Throttle(max_concurrency)
        """The limit on requests in flight, which overload lowers."""

    async def enter(self, intent: Intent, input_tokens: int) -> Entry | Elsewhere:
        """Wait for a request's turn; its intent is on disk then. Call `leave` when the attempt is over.

        Elsewhere where another process has answered an equal request meanwhile, or is about to: nothing is to be left.

        Raises BudgetError when no request in flight can free enough, QuotaError when the day's requests are spent,
        StoppedError after `stop`.
        """
        self._check()
        waiter = _Waiter(intent, Need(input_tokens, to_pico(intent.worst_usd)))
        self._waiting.append(waiter)
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        try:
            entry = await waiter.turn
            if isinstance(entry, Entry):
                await asyncio.sleep(entry.ticket.start_at - time.time())
        except asyncio.CancelledError:
            if not waiter.turn.cancelled() and waiter.turn.exception() is None:  # its turn has come all the same
                await self._give_back(waiter.turn.result())
            raise
        return entry

    def stop(self) -> None:
        """Let nothing leave any more, and turn away who waits."""
        self._stopped.set()
        self._moved.set()
        while self._waiting:
            _refuse(self._waiting.popleft(), StoppedError())

    async def rest(self, seconds: float) -> None:
        """Wait before another attempt; raises StoppedError as soon as the run is stopped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)
        self._check()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise StoppedError

    def leave(self) -> None:
        """An attempt is over: there is room for another, and perhaps money."""
        self._in_flight -= 1
        self._ended += 1
        self._moved.set()

    def settlement(self, entry: Entry, input_tokens: int, pico: int) -> Change | None:
        """What the attempt really took, for the limits that count it; None where none does."""
        if self._limits.tpm is None and self._limits.pico_per_10min is None:
            return None
        taken = Need(input_tokens, pico)
        return self._change(lambda state: settle(state, self._limits, entry.ticket.start_at, entry.need, taken))

    async def heed(self, limits: dict[str, int], *, pause_s: float = 0.0, day_over: bool = False) -> None:
        """Take to heart, for all processes, what a 429 said: the limits it named, and how long to wait."""
        now = time.time()

        def apply(state: PaceState) -> None:
            learn(state, limits, now)
            pause(state, now + pause_s)
            if day_over:
                end_day(state, now)

        await self._ledger.share(self._change(apply))
        self._moved.set()

    async def _serve(self) -> None:
        """Admit those in front, as many as there is room for, until nobody waits."""
        batch: list[_Waiter] = []
        try:
            while self._waiting:
                self._moved.clear()
                batch = self._front()
                wait_s = await self._admit(batch) if batch else float("inf")
                batch = []
                if wait_s > 0:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._moved.wait(), None if wait_s == float("inf") else wait_s)
        except BaseException as error:
            for waiter in (*batch, *self._waiting):
                _refuse(waiter, error)
            self._waiting.clear()
            raise

    def _front(self) -> list[_Waiter]:
        """Take those who may ask now out of the line; where no more requests are allowed, refuse all."""
        if self._left == 0:
            message = f"the limit of {counted(self._max_requests or 0, 'request')} in one run is reached"
            while self._waiting:
                error = BudgetError(message, hint="run the same command again, or raise --max-requests")
                _refuse(self._waiting.popleft(), error)
        room = min(self.throttle.limit - self._in_flight, BATCH, BATCH if self._left is None else self._left)
        return [self._waiting.popleft() for _ in range(min(max(room, 0), len(self._waiting)))]

    async def _admit(self, batch: list[_Waiter]) -> float:
        """Ask for some at once; gives the seconds to wait, infinity for until something moves."""
        outcomes = await asyncio.gather(*(self._ask(waiter) for waiter in batch))
        held = [(waiter, wait) for waiter, wait in zip(batch, outcomes, strict=True) if wait is not None]
        self._waiting.extendleft(waiter for waiter, _ in reversed(held))
        return min((wait for _, wait in held), default=0.0)

    async def _ask(self, waiter: _Waiter) -> float | None:
        """Ask the ledger for one; None when its waiter was answered, else how long to wait."""
        if waiter.turn.done():  # cancelled while it waited
            return None
        left = self._ended
        try:
            outcome = await self._ledger.reserve(waiter.intent, self._gate(waiter.need))
        except PotstillError as error:
            if isinstance(error, BudgetError) and (self._in_flight or left != self._ended):
                return float("inf") if self._in_flight else 0.0  # what is in flight is held at its worst case
            _refuse(waiter, error)
            return None
        if isinstance(outcome, Held):
            if self._stopped.is_set():
                _refuse(waiter, StoppedError())
                return None
            return outcome.wait_s
        if isinstance(outcome, Ticket):
            self._in_flight += 1
            self._left = None if self._left is None else self._left - 1
        entry = Entry(outcome, waiter.need) if isinstance(outcome, Ticket) else outcome
        if waiter.turn.done():
            await self._give_back(entry)
        else:
            waiter.turn.set_result(entry)
        return None

    async def _give_back(self, entry: Entry | Elsewhere) -> None:
        """Close an attempt that never left, if it is one."""
        if isinstance(entry, Entry):
            try:
                await self._ledger.fail(entry.ticket.attempt, "not sent")
            finally:  # who is cancelled again while that is written
                self.leave()

    def _gate(self, need: Need) -> Gate:
        def decide(text: str | None) -> Admitted | Held:
            state = _read(text)
            decided = admit(state, self._limits, time.time(), need, horizon_s=HORIZON_S)
            if isinstance(decided, DayOver):
                raise _day_over(decided)
            if isinstance(decided, Wait):
                return Held(decided.seconds, decided.reason)
            return Admitted(state.model_dump_json(), decided.at)

        return Gate(self._scope, decide)

    def _change(self, apply: Callable[[PaceState], None]) -> Change:
        def change(text: str | None) -> str:
            state = _read(text)
            apply(state)
            return state.model_dump_json()

        return Change(self._scope, change)


def _read(text: str | None) -> PaceState:
    return PaceState() if text is None else PaceState.model_validate_json(text)


def _refuse(waiter: _Waiter, error: BaseException) -> None:
    if not waiter.turn.done():
        waiter.turn.set_exception(error)


def _day_over(decided: DayOver) -> QuotaError:
    count = "" if decided.limit is None else f" of {counted(decided.limit, 'request')}"
    message = f"the day's quota{count} is spent; it is full again at {decided.retry_at:%Y-%m-%d %H:%M} UTC"
    return QuotaError(message, retry_at=decided.retry_at, hint="run the same command again then")
