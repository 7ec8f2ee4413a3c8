"""The ledger against what the other side billed: a log with one billed request a line, priced by the same book. Pure.

A request that the other side billed and the ledger knows no answer of (a lost connection, a kill) is matched with one
of the ledger's open attempts; it must cost no more than what is held for it. What is left after that is a difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from potstill.files import read_text
from potstill.ledger import BY_BILL
from potstill.pricing.book import PriceBook
from potstill.records import Attempt, Usage, from_json


class Billed(BaseModel):
    """One line of a billing log, as the emulator writes it; fields that are of no use here are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: datetime
    model: str
    service: str = "standard"
    billed: Usage


@dataclass(frozen=True)
class Reconciled:
    """Both sides in dollars, and what explains the difference between them.

    `lost`: requests that were billed and have no reply in the ledger, `lost_usd` for them; `held_usd`: what the ledger
    holds for its open attempts, and those cost that were settled by the bill. `unexplained_usd` is what neither explains; `unknown`: billed requests, and `unbilled`:
    paid attempts, that the other side does not have.
    """

    log_usd: Decimal
    ledger_usd: Decimal
    lost: int
    lost_usd: Decimal
    held_usd: Decimal
    unknown: int
    unbilled: int

    @property
    def unexplained_usd(self) -> Decimal:
        """Zero where every cent is accounted for."""
        return self.log_usd - self.ledger_usd - self.lost_usd

    @property
    def agrees(self) -> bool:
        """Whether every billed request is known or possibly paid, and what is held covers those."""
        return not self.unexplained_usd and not self.unknown and not self.unbilled and self.lost_usd <= self.held_usd


def read_log(path: Path) -> Iterator[Billed]:
    """The lines of a billing log that billed something; raises InputError naming file and line."""
    for number, text in enumerate(read_text(path, "billing log").split("\n"), start=1):
        if not text.strip():
            continue
        entry = from_json(Billed, text, f"{path}:{number}")
        if entry.billed != Usage():
            yield entry


def reconcile(attempts: Sequence[Attempt], log: Iterable[Billed], book: PriceBook) -> Reconciled:
    """Match both sides by model, service and usage, so that a retry counts as often as it was billed."""
    entries = list(log)
    paid = [attempt for attempt in attempts if attempt.status != "open" and attempt.usage != Usage()]
    known = Counter((attempt.model, attempt.service, attempt.usage.model_dump_json()) for attempt in paid)
    lost = []
    for entry in entries:
        key = (entry.model, entry.service, entry.billed.model_dump_json())
        if known[key]:
            known[key] -= 1
        else:
            lost.append(entry)
    held = [attempt.reserved_usd for attempt in attempts if attempt.status == "open"]
    held += [attempt.cost_usd for attempt in attempts if attempt.reason == BY_BILL]
    return Reconciled(
        log_usd=_priced(entries, book),
        ledger_usd=sum((attempt.cost_usd for attempt in paid), Decimal(0)),
        lost=len(lost),
        lost_usd=_priced(lost, book),
        held_usd=sum(held, Decimal(0)),
        unknown=max(0, len(lost) - len(held)),
        unbilled=sum(known.values()),
    )


def _priced(entries: Iterable[Billed], book: PriceBook) -> Decimal:
    usd = (book.cost(entry.billed, entry.model, entry.service, entry.at.date()).usd for entry in entries)
    return sum(usd, Decimal(0))
