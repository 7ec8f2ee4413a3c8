"""Where the month will end: what was spent so far and the recent days' pace carried on; for one project or several.

The days to come are taken to be like the recent ones, quiet days included: expected = spent this month + mean of the
window x days left, with a 90 % interval from the spread between days. A price change ahead is told, not computed in.
"""

from __future__ import annotations

import calendar
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from potstill.files import read_text
from potstill.ledger import Sum, read_sums
from potstill.pricing.files import parse
from potstill.pricing.intervals import total_interval
from potstill.records import from_data
from potstill.workspace import Workspace

ZERO = Decimal(0)
PICO = Decimal("1e-12")
OVER = Decimal(1)


@dataclass(frozen=True)
class Projection:
    """A calendar month in dollars (UTC days).

    `spent_usd` was billed so far this month, `open_usd` is held for attempts without a reply; `pace_usd` a day over
    `window_days`; `projected_usd` for the whole month, with `low_usd` and `high_usd` where the window has ten days.
    """

    month: str
    spent_usd: Decimal
    open_usd: Decimal
    pace_usd: Decimal
    window_days: int
    days_left: int
    projected_usd: Decimal
    low_usd: Decimal | None
    high_usd: Decimal | None
    models: tuple[str, ...]
    first_day: bool
    """Whether today, the project's first day, is all that the pace is known by."""


@dataclass(frozen=True)
class Standing:
    """A project against its budget: the share of it that is projected, and the highest threshold that it passes."""

    name: str
    budget_usd: Decimal | None
    projection: Projection
    passed: Decimal | None
    has_ledger: bool = True

    @property
    def share(self) -> Decimal | None:
        """Projected spending over the budget."""
        return self.projection.projected_usd / self.budget_usd if self.budget_usd else None

    @property
    def over(self) -> bool:
        """Whether the month will end, or already is, above the budget."""
        return self.budget_usd is not None and self.projection.projected_usd > self.budget_usd


class Project(BaseModel):
    """A project in a budget file; `alert_at`: shares of the budget that are told of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    workspace: str
    monthly_usd: Decimal = Field(gt=0)
    alert_at: tuple[Decimal, ...] = (Decimal("0.5"), Decimal("0.8"), OVER)


class Budgets(BaseModel):
    """A budget file: several projects, and what they may spend together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    total_monthly_usd: Decimal | None = Field(None, gt=0)
    projects: tuple[Project, ...] = Field(min_length=1)


def project(sums: Iterable[Sum], today: date, window_days: int) -> Projection:
    """Project the month of `today` from the last `window_days` days, today left out: it is not over.

    A window that reaches back before the first attempt starts there; on the first day the pace is today's spending.
    """
    by_day: defaultdict[date, Decimal] = defaultdict(Decimal)
    held, models = ZERO, set()
    for found in sums:
        if found.status != "open":
            by_day[found.day] += found.cost_usd
        elif (found.day.year, found.day.month) == (today.year, today.month):
            held += found.reserved_usd
        if found.day >= today - timedelta(days=window_days):
            models.add(found.model)
    values = _window(by_day, today, window_days)
    spent = sum((usd for day, usd in by_day.items() if (day.year, day.month) == (today.year, today.month)), ZERO)
    left = calendar.monthrange(today.year, today.month)[1] - today.day
    pace = sum(values, ZERO) / len(values) if values else ZERO
    ahead = total_interval([float(value) for value in values], left)
    return Projection(
        month=f"{today:%Y-%m}",
        spent_usd=spent,
        open_usd=held,
        pace_usd=pace,
        window_days=len(values),
        days_left=left,
        projected_usd=spent + pace * left,
        low_usd=None if ahead is None else spent + _decimal(ahead.low),
        high_usd=None if ahead is None else spent + _decimal(ahead.high),
        models=tuple(sorted(models)),
        first_day=bool(by_day) and min(by_day) >= today,
    )


def standing(name: str, projection: Projection, budget: Decimal | None, alert_at: Sequence[Decimal]) -> Standing:
    """Hold a projection against a budget and its thresholds."""
    if budget is None:
        return Standing(name, None, projection, None)
    passed = [share for share in alert_at if projection.projected_usd > share * budget]
    return Standing(name, budget, projection, max(passed, default=None))


def read_budgets(path: Path) -> Budgets:
    """A budget file in YAML; raises InputError naming file and line or field."""
    return from_data(Budgets, parse(read_text(path, "budget file"), str(path)), path)


def standings(budgets: Budgets, folder: Path, today: date, window_days: int) -> tuple[Standing, ...]:
    """Every project of a budget file, and all of them together; workspaces are named from the file's folder."""
    found, everything = [], []
    for item in budgets.projects:
        ledger = Workspace(folder / item.workspace).ledger
        sums = read_sums(ledger)
        everything += sums
        own = standing(item.name, project(sums, today, window_days), item.monthly_usd, item.alert_at)
        found.append(replace(own, has_ledger=ledger.is_file()))
    whole = project(everything, today, window_days)
    return (*found, standing("all projects", whole, budgets.total_monthly_usd, (OVER,)))


def _window(by_day: dict[date, Decimal], today: date, window_days: int) -> list[Decimal]:
    if not by_day:
        return []
    first = max(min(by_day), today - timedelta(days=window_days))
    if first >= today:
        return [by_day.get(today, ZERO)]
    return [by_day.get(first + timedelta(days=number), ZERO) for number in range((today - first).days)]


def _decimal(value: float) -> Decimal:
    return Decimal(repr(value)).quantize(PICO)
