"""`potstill cost forecast`: where the month will end, and an exit code when that is too much."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.cost.money import Currency, currency_of, day, money, plain, plain_data, today
from potstill.cli.cost.tables import Table, form_of, page
from potstill.cli.session import Session, with_session
from potstill.errors import BudgetError, UsageError
from potstill.wording import counted

if TYPE_CHECKING:
    from datetime import date
    from decimal import Decimal

    from potstill.cost.projection import Standing

HEADS = ("project", "spent", "possibly", "a day", "projected", "90 % low", "90 % high", "budget", "of it", "")
FIGURES = frozenset(HEADS[1:-1])


@with_session(book="prices.file", currency="prices.currency", rate="prices.rate")
def forecast(  # noqa: PLR0913, PLR0917  (one option a figure)
    session: Session,
    days: Annotated[int, typer.Option(min=1, help="Recent days that set the pace.")] = 14,
    monthly: Annotated[str | None, typer.Option(help="Dollars that a month may cost.")] = None,
    alert: Annotated[
        list[str] | None, typer.Option(help="Exit with 4 when this is projected: dollars, or 80% of --monthly.")
    ] = None,
    budgets: Annotated[Path | None, typer.Option(help="Budget file for several projects (YAML).")] = None,
    on: Annotated[str | None, typer.Option(help="As if it were this day, YYYY-MM-DD.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Project the month from the ledger's recent days. For this workspace or for every project of a budget file."""
    form = form_of(markdown=markdown, as_csv=as_csv, as_json=session.as_json)
    if budgets and (monthly or alert):
        message = "--budgets has its own thresholds: leave out --monthly and --alert"
        raise UsageError(message)
    shown, now = currency_of(session.config.prices), day(on, "--on") or today()
    found = _several(budgets, now, days) if budgets else [_one(session, now, days, monthly)]
    stops = [*_over(found), *_alerts(found[0], alert or [])]
    told = [
        f"{item.name}: {plain(item.passed * 100)} % of its budget is passed"
        for item in found
        if item.passed and not item.over
    ]
    unseen = [f"{item.name}: there is no ledger in its workspace yet" for item in found if not item.has_ledger]
    notes = [*stops, *told, *unseen, *_ahead(session, found, now), shown.note]
    month = found[0].projection
    pace = "pace of today alone" if month.first_day else f"pace of the last {month.window_days} days, today left out"
    title = f"{month.month}, {counted(month.days_left, 'day')} left; {pace}"
    document = {"projects": [_document(item) for item in found], "alerts": stops, "currency": shown.document}
    table = Table(HEADS, [_row(item, shown) for item in found], title, FIGURES)
    session.show(
        plain_data(document), page(form, [table], [note for note in notes if note], tag="potstill cost forecast")
    )
    if stops:
        error = BudgetError("; ".join(stops), hint="spend less, or raise the budget")
        session.complain(error)
        raise typer.Exit(error.exit_code)


def _one(session: Session, now: date, days: int, monthly: str | None) -> Standing:
    from potstill.cost.projection import OVER, project, standing
    from potstill.ledger import read_sums

    projection = project(read_sums(session.workspace.ledger), now, days)
    budget = None if monthly is None else money(monthly, "--monthly")
    return standing(session.config.workspace, projection, budget, (OVER,))


def _several(path: Path, now: date, days: int) -> list[Standing]:
    from potstill.cost.projection import read_budgets, standings

    return list(standings(read_budgets(path), path.parent, now, days))


def _over(found: list[Standing]) -> list[str]:
    return [
        f"{item.name}: ${item.projection.projected_usd:.2f} projected, above its budget of ${item.budget_usd:f}"
        for item in found
        if item.over
    ]


def _alerts(item: Standing, given: list[str]) -> list[str]:
    """The thresholds of the command line that the projection passes."""
    limits = {text: _threshold(text, item.budget_usd) for text in given}
    projected = item.projection.projected_usd
    return [
        f"{item.name}: ${projected:.2f} projected, above the alert at {text}"
        for text, limit in limits.items()
        if projected > limit
    ]


def _threshold(text: str, budget: Decimal | None) -> Decimal:
    if not text.endswith("%"):
        return money(text, "--alert")
    if budget is None:
        message = f"--alert {text} is a share of --monthly, which is not given"
        raise UsageError(message)
    return money(text.removesuffix("%"), "--alert") / 100 * budget


def _ahead(session: Session, found: list[Standing], now: date) -> list[str]:
    """Price changes of the models in use that lie ahead: the projection does not count them in."""
    from potstill.pricing.book import load_prices
    from potstill.pricing.changes import AHEAD, changes

    book = load_prices(session.config.prices)
    used = {model for item in found for model in item.projection.models}
    known = frozenset(model.id for model in book.models() if model.id in used or used & set(model.aliases))
    return [f"{change.day}: {change.text} (not in the projection)" for change in changes(book, now, now + AHEAD, known)]


def _row(item: Standing, shown: Currency) -> tuple[str, ...]:
    found = item.projection
    figures = (found.spent_usd, found.open_usd, found.pace_usd, found.projected_usd, found.low_usd, found.high_usd)
    share = "-" if item.share is None else f"{item.share:.0%}"
    state = "over" if item.over else "watch" if item.passed else "ok" if item.budget_usd else ""
    return (item.name, *map(shown.show, (*figures, item.budget_usd)), share, state)


def _document(item: Standing) -> dict[str, Any]:
    return {**asdict(item), "share": item.share, "over": item.over}
