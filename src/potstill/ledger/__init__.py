"""Every attempt at a paid call, in SQLite: the intent before it leaves, the raw answer before anything parses it."""

from potstill.ledger.entries import (
    BY_BILL,
    Admitted,
    Cap,
    Change,
    Elsewhere,
    Gate,
    Held,
    Intent,
    Job,
    PlanProgress,
    Settled,
    Settlement,
    StoredReply,
    Ticket,
)
from potstill.ledger.journal import Ledger
from potstill.ledger.money import from_pico, to_pico
from potstill.ledger.reading import Answered, LedgerView, read_attempts
from potstill.ledger.sums import PaidWork, Sum, paid_work, read_sums

__all__ = [
    "BY_BILL",
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
    "Settled",
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
