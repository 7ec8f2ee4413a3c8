"""What is put into the ledger, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from potstill.records import Usage


@dataclass(frozen=True)
class Cap:
    """The most that all attempts of one command may cost, in all runs; `name` is the config key that says so."""

    name: str
    max_usd: Decimal


@dataclass(frozen=True)
class Intent:
    """What is about to be sent, and the most that it can cost. `request` is JSON, kept as it is.

    `cap`: what the command may cost beside the budget of the whole ledger. `patience_s`: how long an equal request that
    another process sent may be under way; so long it is waited for instead of being paid for again. None: this is sent
    whatever others have sent.
    """

    key: str
    command: str
    role: str | None
    model: str
    service: str
    request: str
    worst_usd: Decimal
    cap: Cap | None = None
    patience_s: float | None = None


@dataclass(frozen=True)
class Settlement:
    """What came back: the raw reply, what it was billed, and how long it took."""

    reply: str
    usage: Usage
    cost_usd: Decimal
    price_id: str | None
    latency_s: float


BY_BILL = "settled by the bill"
"""Why an attempt without a reply is closed: its user has looked it up. Nothing else closes one."""


@dataclass(frozen=True)
class Settled:
    """Attempts without a reply that were closed: how many, what was held for them, and what they have cost."""

    attempts: int
    held_usd: Decimal
    billed_usd: Decimal


@dataclass(frozen=True)
class StoredReply:
    """An answer that was paid for earlier."""

    reply: str
    cost_usd: Decimal
    price_id: str
    latency_s: float
    finished_at: datetime


@dataclass(frozen=True)
class Admitted:
    """A gate lets a request pass: the state that all processes share from now on, and when it may leave (epoch s)."""

    state: str
    start_at: float


@dataclass(frozen=True)
class Held:
    """Nothing was written; ask again in `wait_s` seconds."""

    wait_s: float
    reason: str


@dataclass(frozen=True)
class Elsewhere:
    """Nothing was written: another process has the answer to this key, or has asked for it and is at work still."""


@dataclass(frozen=True)
class Gate:
    """Whether a request may leave, asked of the limits that processes share.

    `decide` gets the state shared under `scope`, in the same transaction in which the budget is checked and the intent
    written: all limits admit a request, or none does. It may raise a PotstillError where waiting is no use.
    """

    scope: str
    decide: Callable[[str | None], Admitted | Held]


@dataclass(frozen=True)
class Change:
    """A change of the state shared under `scope`; `apply` gives the new state, or None to leave it."""

    scope: str
    apply: Callable[[str | None], str | None]


@dataclass(frozen=True)
class Ticket:
    """The intent is on disk as attempt number `attempt`; it may leave at `start_at` (epoch s)."""

    attempt: int
    start_at: float


@dataclass(frozen=True)
class PlanProgress:
    """How far a plan is: every cell before `first_open` has an answer, but for the `holes` (ascending)."""

    cells: int
    first_open: int
    holes: tuple[int, ...]


JobStatus = Literal["planned", "uploaded", "submitted", "ended"]


@dataclass(frozen=True)
class Job:
    """A batch job.

    `planned`: its attempts are on disk; `uploaded`: `file` names its input at the teacher; `submitted`: `name` names
    the job there; `ended`: everything that it gave is settled. `label` is unique and travels with the job, so that a
    job whose name was never received is found again.
    """

    id: int
    label: str
    model: str
    status: JobStatus
    file: str | None
    name: str | None
    created_at: datetime
