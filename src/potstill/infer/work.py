"""One question on its way through the router, and what comes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal

from potstill.infer.cache import Neighbour, Neighbourhood
from potstill.infer.store import Entry
from potstill.records import Message, Record, Trace

Route = Literal["exact", "semantic", "student", "teacher", "merged"]


class RouterAnswer(Record):
    """An answer, and the way it took."""

    text: str
    trace: Trace


@dataclass
class Work:
    """One question on its way: what is known so far, and why the steps before did not answer.

    `tell` takes Gemini's answer while it arrives. `reading`: the encoder at work. `sample` says which answer of Gemini is wanted: the ledger gives an equal request its old answer for nothing, which is
    right after a crash, and wrong once that answer was forgotten or has expired. `near` is the nearest cached question
    that no guard spoke against, with its `score`; `shadowed`: it would have been served. `foreign`: the student was taught
    nothing like it; `taught_cosine`: how near the nearest training question is.
    """

    question: str
    namespace: str
    history: tuple[Message, ...]
    began: float
    at: datetime
    scope: str
    key: str
    cacheable: bool
    tell: Callable[[str], None] | None = None
    notes: list[str] = field(default_factory=list)
    read: Neighbourhood = field(default_factory=Neighbourhood)
    reading: asyncio.Task[Neighbourhood] | None = None
    spent: Decimal = Decimal(0)
    roles: tuple[str, ...] = ()
    sample: int = 0
    near: Neighbour | None = None
    score: float | None = None
    shadowed: bool = False
    escalated: bool = False
    foreign: bool = False
    taught_cosine: float | None = None
    nearest_agreement: float | None = None
    student_agreement: float | None = None


@dataclass(frozen=True)
class Outcome:
    """An answer before it is stored. `keep`: it may be served again; `alone_usd`: what Gemini alone cost, if known."""

    text: str
    route: Route
    reason: str
    model: str | None = None
    cosine: float | None = None
    mean_logprob: float | None = None
    entry: Entry | None = None
    keep: bool = False
    alone_usd: Decimal | None = None
