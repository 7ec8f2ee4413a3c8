"""What a plan would send, before anything is sent: counts, and the bounds of its price."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from potstill.generate.plan import Plan
from potstill.ledger import read_attempts
from potstill.pricing.book import load_prices
from potstill.pricing.tokens import estimate_tokens
from potstill.records import Usage
from potstill.workspace import Workspace


@dataclass(frozen=True)
class Forecast:
    """Cells, how many are in the ledger, and dollars for the rest: with no output at all, and with all of it."""

    cells: int
    paid: int
    input_tokens: int
    least_usd: Decimal
    worst_usd: Decimal
    service: str


def forecast(plan: Plan, workspace: Workspace) -> Forecast:
    """Count and price a plan; reads the ledger where there is one, and writes nothing."""
    teacher, generate = plan.config.teacher, plan.config.generate
    book, today = load_prices(plan.config.prices), datetime.now(UTC).date()
    known = {attempt.key for attempt in read_attempts(workspace.ledger) if attempt.status == "done"}
    paid, tokens, least, worst = 0, 0, Decimal(0), Decimal(0)
    for cell in plan:
        if cell.request.key in known:
            paid += 1
            continue
        size = sum(estimate_tokens(message.content) for message in cell.messages)
        tokens += size
        least += book.cost(Usage(input_tokens=size), teacher.model, teacher.service, today).usd
        worst += book.worst_case(
            teacher.model,
            teacher.service,
            today,
            input_tokens=size,
            max_output_tokens=generate.max_output_tokens,
            thinking_budget=teacher.thinking_budget,
        )
    return Forecast(len(plan), paid, tokens, least, worst, teacher.service)
