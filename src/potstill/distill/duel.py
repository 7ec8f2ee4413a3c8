"""Paired judging by the teacher with swapped positions, and the teacher's agreement with itself, within a budget."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from potstill.config import Config, Secrets
from potstill.distill.asking import Judged
from potstill.distill.metrics import agreement
from potstill.distill.stats import ceiling, interval
from potstill.errors import BudgetError, QuotaError, TeacherError
from potstill.ledger import Cap, Ledger, LedgerView
from potstill.pricing.book import PriceBook, load_prices
from potstill.prompts import fill, load_template
from potstill.records import Ceiling, Duel, Message
from potstill.teacher.calls import Answer, Asks, TeacherRequest, build_request
from potstill.teacher.opening import open_teacher
from potstill.teacher.paid import stored_answer, worst_input_tokens
from potstill.workspace import Workspace

VERDICT_TOKENS = 64
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"better": {"type": "integer", "minimum": 0, "maximum": 2}},
    "required": ["better"],
}
"""0: neither is better; 1 or 2: that candidate is."""


@dataclass(frozen=True)
class Consulted:
    """What the teacher said: the answers with its word on each, the tally, and its agreement with itself."""

    judged: list[Judged]
    duel: Duel | None
    ceiling: Ceiling | None
    stopped: str = ""


class Purse:
    """Asks the teacher while the worst case of a request still fits what may be spent here; counts what was.

    With a ledger the limit holds over restarts: what earlier runs paid for these requests, lost attempts included, has
    been spent already, and their answers cost nothing more.
    """

    def __init__(
        self, asks: Asks, config: Config, book: PriceBook, limit_usd: Decimal, ledger: Ledger | None = None
    ) -> None:
        self._asks = asks
        self._config = config
        self._book = book
        self._left = limit_usd
        self._ledger = ledger
        self._flying = 0
        self._settled = asyncio.Condition()
        self.spent_usd = Decimal(0)
        self.stopped = ""

    def remember(self, requests: Iterable[TeacherRequest]) -> None:
        """Count what earlier runs spent on these requests; before any of them is asked."""
        for key in {request.key for request in requests}:
            self._book_in(self._committed(key))

    async def all(self, requests: Sequence[TeacherRequest]) -> list[Answer | None]:
        """The answers in order; None for a request that failed, or was not sent for want of money or quota."""
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def _one(self, request: TeacherRequest) -> Answer | None:
        if self._ledger is not None and (known := stored_answer(self._ledger, request)) is not None:
            return known
        worst = self._worst(request)
        async with self._settled:  # what is in flight may come back cheaper than its worst case
            await self._settled.wait_for(lambda: self.stopped or worst <= self._left or not self._flying)
            if self.stopped or worst > self._left:
                self.stopped = self.stopped or "distill.judge.max_usd is used up"
                return None
            self._left -= worst
            self._flying += 1
        before = self._committed(request.key)
        try:
            answer = await self._asks.ask(request)
        except TeacherError:
            return None
        except (BudgetError, QuotaError) as error:
            self.stopped = error.message
            return None
        finally:
            async with self._settled:
                self._left += worst
                self._book_in(self._committed(request.key) - before)
                self._flying -= 1
                self._settled.notify_all()
        return answer

    def _committed(self, key: str) -> Decimal:
        """What the ledger holds against a request; a teacher without one costs nothing."""
        return Decimal(0) if self._ledger is None else self._ledger.committed(key)

    def _book_in(self, paid: Decimal) -> None:
        self._left -= paid
        self.spent_usd += paid

    def _worst(self, request: TeacherRequest) -> Decimal:
        teacher = self._config.teacher
        return self._book.worst_case(
            request.model,
            teacher.service,
            datetime.now(UTC).date(),
            input_tokens=worst_input_tokens(request, 0),
            max_output_tokens=request.body["generationConfig"]["maxOutputTokens"],
            thinking_budget=teacher.thinking_budget,
        )


async def judge_by_teacher(
    config: Config, secrets: Secrets, workspace: Workspace, judged: Sequence[Judged]
) -> Consulted:
    """Open the paid teacher and consult it for at most `distill.judge.max_usd`; raises KeyRefusedError without a key.

    The ledger holds that limit before each attempt: a retry, or flex's way to the standard price, costs more than the
    worst case that the purse counts with.
    """
    limit = config.distill.judge.max_usd or Decimal(0)
    with LedgerView(workspace.ledger) as view:
        own = view.committed_for(request.key for request in _Wanted.of(config, judged).requests)
        cap = Cap("distill.judge.max_usd", limit, view.committed_by("distill") - own)
    async with open_teacher(config, secrets, workspace, command="distill", cap=cap) as teacher:
        purse = Purse(teacher, config, load_prices(config.prices), limit, teacher.ledger)
        return await consult(purse, config, judged)


@dataclass(frozen=True)
class _Wanted:
    """What is to be asked: pairs in both orders, and questions once more."""

    pairs: list[tuple[Judged, list[TeacherRequest]]]
    again: list[tuple[Judged, TeacherRequest]]

    @classmethod
    def of(cls, config: Config, judged: Sequence[Judged]) -> _Wanted:
        settings = config.distill.judge
        return cls(
            [(item, _swapped(config, item)) for item in _spread(judged, settings.samples)],
            [(item, _once_more(config, item)) for item in _spread(judged, settings.resamples)],
        )

    @property
    def requests(self) -> list[TeacherRequest]:
        return [*(request for _, both in self.pairs for request in both), *(request for _, request in self.again)]


async def consult(purse: Purse, config: Config, judged: Sequence[Judged]) -> Consulted:
    """Let the teacher choose between its stored answer and the student's, then answer some questions once more.

    Each pair is shown twice, the second time swapped; a choice that follows the position counts as a tie (position
    bias: arXiv 2306.05685). Equal answers are a tie and cost nothing.
    """
    wanted = _Wanted.of(config, judged)
    pairs, again = wanted.pairs, wanted.again
    purse.remember(wanted.requests)
    results = await asyncio.gather(*(_choice(purse, requests) for _, requests in pairs))
    words = {id(item): word for (item, _), word in zip(pairs, results, strict=True) if word is not None}
    told = [replace(item, points=(words[id(item)] + 1) / 2) if id(item) in words else item for item in judged]
    replies = await purse.all([request for _, request in again])
    own = [(item, reply.text) for (item, _), reply in zip(again, replies, strict=True) if reply is not None]
    return Consulted(
        judged=told,
        duel=_tally(words, [item for item, _ in pairs if id(item) in words], purse.spent_usd),
        ceiling=ceiling(
            [(item.sample.prompt_id, agreement(text, item.reference).score) for item, text in own], "asked once more"
        ),
        stopped=purse.stopped,
    )


def _swapped(config: Config, item: Judged) -> list[TeacherRequest]:
    """The pair in both orders; nothing where the answers are equal."""
    pair = (item.reference, item.answer.text)
    return [] if item.exact else [_request(config, item, pair), _request(config, item, pair[::-1])]


async def _choice(purse: Purse, requests: Sequence[TeacherRequest]) -> int | None:
    """1: the student's answer is better in both positions; -1: the teacher's is; 0: a tie; None: not judged."""
    choices = [_better(reply) for reply in await purse.all(requests)]
    if None in choices:
        return None
    return {(2, 1): 1, (1, 2): -1}.get((choices[0] or 0, choices[1] or 0), 0) if choices else 0


def _request(config: Config, item: Judged, pair: tuple[str, str]) -> TeacherRequest:
    lines = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(pair, start=1))
    persona = " ".join(turn.content for turn in item.sample.messages if turn.role == "system") or item.sample.role
    values = {"persona": persona, "question": item.question, "candidates": lines}
    prompt = fill(load_template("judge", config.language), values)
    return build_request(
        config.teacher,
        (Message(role="user", content=prompt),),
        temperature=0.0,
        max_output_tokens=VERDICT_TOKENS,
        role=item.sample.role,
        schema=SCHEMA,
    )


def _better(reply: Answer | None) -> int | None:
    try:
        value = json.loads(reply.text)["better"] if reply else None
    except (ValueError, KeyError, TypeError):
        return None
    return value if value in {0, 1, 2} and not isinstance(value, bool) else None


def _tally(words: dict[int, int], items: Sequence[Judged], spent: Decimal) -> Duel | None:
    if not items:
        return None
    points = [(words[id(item)] + 1) / 2 for item in items]
    found = interval(points, [item.sample.prompt_id for item in items])
    return Duel(
        n=len(items),
        wins=points.count(1.0),
        ties=points.count(0.5),
        losses=points.count(0.0),
        score=found.mean,
        low=found.low,
        high=found.high,
        cost_usd=spent,
    )


def _once_more(config: Config, item: Judged) -> TeacherRequest:
    """The question asked again, as sample number n + 1 of the plan, which a later run reuses."""
    generate = config.generate
    return build_request(
        config.teacher,
        item.sample.messages[:-1],
        temperature=generate.temperature,
        max_output_tokens=generate.max_output_tokens,
        sample=generate.samples_per_prompt,
        role=item.sample.role,
    )


def _spread(items: Sequence[Judged], count: int) -> list[Judged]:
    """Up to `count` items, evenly from the whole list, so that every role and topic has its share."""
    if count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
