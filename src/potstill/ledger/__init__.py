"""Every attempt at a paid call, in SQLite: the intent before it leaves, the raw answer before anything parses it."""

from potstill.ledger.entries import (
    Admitted,
    Cap,
    Change,
    Elsewhere,
    Gate,
    Held,
    Intent,
    Job,
    PlanProgress,
    Settlement,
    StoredReply,
    Ticket,
)
from potstill.ledger.journal import Ledger
from potstill.ledger.money import from_pico, to_pico
from potstill.ledger.reading import Answered, LedgerView, read_attempts
from potstill.ledger.sums import PaidWork, Sum, paid_work, read_sums

__all__ = [
    "Admitted",
    "Answered",
    "Cap",
    "Change",
    "Elsewhere",
    "Gate",
    "Held",
    "Intent",
    "Job",
    "Ledger",
    "LedgerView",
    "PaidWork",
    "PlanProgress",
    "Settlement",
    "StoredReply",
    "Sum",
    "Ticket",
    "from_pico",
    "paid_work",
    "read_attempts",
    "read_sums",
    "to_pico",
]
