"""The cells of a plan that are still to be paid for. Streamed: only how many there are of each length is held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from potstill.generate.plan import Plan
from potstill.ledger import LedgerView
from potstill.pricing.tokens import estimate_tokens
from potstill.teacher.paid import worst_input_tokens


@dataclass(frozen=True)
class Todo:
    """The cells still to be paid for: how many there are by input tokens (estimated) and by bytes (the upper bound)."""

    cells: int
    paid: int
    tokens: Mapping[int, int]
    bounds: Mapping[int, int]

    @property
    def requests(self) -> int:
        """How many requests they are."""
        return sum(self.tokens.values())

    @property
    def input_tokens(self) -> int:
        """All their input."""
        return sum(size * count for size, count in self.tokens.items())


def count_todo(plan: Plan, ledger: LedgerView) -> Todo:
    """Go through the cells once; those in the ledger are paid for."""
    cells, paid = 0, 0
    tokens: Counter[int] = Counter()
    bounds: Counter[int] = Counter()
    for cell in plan:
        cells += 1
        if ledger.has(cell.request.key):
            paid += 1
            continue
        size = sum(estimate_tokens(message.content) for message in cell.messages)
        tokens[size] += 1
        bounds[worst_input_tokens(cell.request, size)] += 1
    return Todo(cells, paid, tokens, bounds)
