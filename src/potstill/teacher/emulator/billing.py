"""Where an answer is written down, and counted against the spend of ten minutes."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime

from potstill.config import PricesConfig
from potstill.errors import UnknownModelError
from potstill.pricing.book import PriceBook, load_prices
from potstill.teacher.emulator.answering import Answered
from potstill.teacher.emulator.journal import Journal
from potstill.teacher.emulator.quotas import Quotas
from potstill.teacher.emulator.replies import Asked
from potstill.teacher.emulator.settings import EmulatorSettings


class Billing:
    """Bills answers: each stands in the request log, and its price in the quota of dollars where there is one."""

    def __init__(self, settings: EmulatorSettings, journal: Journal, quotas: Quotas) -> None:
        self.journal = journal
        self._quotas = quotas
        self._book: PriceBook | None = load_prices(PricesConfig()) if settings.spend_usd is not None else None

    def bill(self, asked: Asked, method: str, answered: Answered, **more: str | None) -> None:
        """Bill one answer; `more` are the optional fields of a log entry."""
        self.journal.write(asked, method, 200, finish_reason=answered.finish_reason, billed=answered.usage, **more)
        if self._book is None:
            return
        service = more.get("service") or asked.service
        with contextlib.suppress(UnknownModelError):  # a model without a price counts for nothing here
            priced = self._book.cost(answered.usage, asked.model, service, datetime.now(UTC).date())
            self._quotas.spend(time.time(), priced.usd)
