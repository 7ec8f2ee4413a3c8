"""`potstill cost report`: what the ledger says was spent, and what the traces say was saved."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.cost.money import Currency, currency_of, day, plain_data
from potstill.cli.cost.money import money as dollars
from potstill.cli.cost.tables import Table, form_of, page
from potstill.cli.session import Session, with_session
from potstill.errors import QualityGateError, UsageError
from potstill.wording import counted

if TYPE_CHECKING:
    from potstill.cost.reconcile import Reconciled
    from potstill.cost.report import Line, Report, Savings
    from potstill.ledger import Settled

HEADS = ("by", "", "answers", "failed", "open", "input", "output", "billed", "of it failed", "possibly", "an answer")
FIGURES = frozenset(HEADS[2:])


@with_session(book="prices.file", currency="prices.currency", rate="prices.rate")
def report(  # noqa: PLR0913, PLR0917  (one option a filter)
    session: Session,
    by: Annotated[list[str] | None, typer.Option(help="day, command, role, model or service. Repeatable.")] = None,
    since: Annotated[str | None, typer.Option(help="From this day on (UTC), YYYY-MM-DD.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to and with this day (UTC), YYYY-MM-DD.")] = None,
    command: Annotated[str | None, typer.Option("--command", help="Only this command.")] = None,
    billing: Annotated[
        Path | None, typer.Option(help="Billing log to reconcile with; exit code 8 if it differs.")
    ] = None,
    settle: Annotated[
        str | None,
        typer.Option(help="Dollars on the bill for what is possibly paid, of these days and this command: close it."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown tables.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Add up the ledger, and what the router saved. By day, command, role, model and service."""
    from potstill.cost.report import GROUPS
    from potstill.cost.report import report as run_report
    from potstill.cost.report import settle as run_settle

    form = form_of(markdown=markdown, as_csv=as_csv, as_json=session.as_json)
    if unknown := [name for name in by or () if name not in GROUPS]:
        message = f"--by {unknown[0]!r} is no group"
        raise UsageError(message, hint=f"one of {', '.join(GROUPS)}")
    money = currency_of(session.config.prices)
    first, last = day(since, "--since"), day(until, "--until")
    settled = None
    if settle is not None:
        billed = dollars(settle, "--settle")
        settled = asyncio.run(run_settle(session.workspace, billed, since=first, until=last, command=command))
    found = run_report(session.workspace, since=first, until=last, command=command)
    table = Table(HEADS, list(_rows(found, by, money)), f"ledger of {session.config.workspace}", FIGURES)
    matched = _reconciled(session, billing) if billing else None
    missing = "" if session.workspace.ledger.is_file() else "there is no ledger in this workspace yet"
    total = found.total
    way = f"under way: {counted(total.under_way, 'attempt')}, at most {money.exact(total.under_way_usd)}"
    by_bill = f"settled by the bill, all told: {counted(total.by_bill, 'attempt')} without a reply, {money.exact(total.by_bill_usd)}"
    notes = [
        missing,
        way if total.under_way else "",
        _closed(settled, money) if settled else "",
        by_bill if total.by_bill else "",
        *_saved(found.saved, money),
        *([_against(matched, money)] if matched else []),
        money.note,
    ]
    document: dict[str, Any] = {
        **asdict(found),
        "saved": {**asdict(found.saved), "saved_usd": found.saved.saved_usd},
        "currency": money.document,
    }
    if settled:
        document["settled"] = asdict(settled)
    if matched:
        document["reconciled"] = {
            **asdict(matched),
            "unexplained_usd": matched.unexplained_usd,
            "agrees": matched.agrees,
        }
    session.show(plain_data(document), page(form, [table], [line for line in notes if line]))
    if matched and not matched.agrees:
        error = QualityGateError(f"the ledger and {billing} differ", hint="see the line on the billing log")
        session.complain(error)
        raise typer.Exit(error.exit_code)


def _closed(settled: Settled, money: Currency) -> str:
    held = f"{money.exact(settled.held_usd)} held for {counted(settled.attempts, 'attempt')}"
    return f"settled now: {held}, {money.exact(settled.billed_usd)} of it spent by the bill, the rest is free"


def _rows(found: Report, by: list[str] | None, money: Currency) -> Iterator[tuple[str, ...]]:
    yield ("all", "", *_cells(found.total, money))
    for name, group in found.groups.items():
        if by is None or name in by:
            yield from ((name, value, *_cells(line, money)) for value, line in group.items())


def _cells(line: Line, money: Currency) -> tuple[str, ...]:
    output = line.usage.output_tokens + line.usage.thinking_tokens
    counts = (line.answers, line.failed, line.open, line.usage.input_tokens, output)
    each = line.usd_per_answer
    usd = (line.usd, line.failed_usd, line.possibly_usd)
    return (*map(str, counts), *map(money.exact, usd), "-" if each is None else money.show(each))


def _saved(saved: Savings, money: Currency) -> list[str]:
    if not saved.routes:
        return []
    routes = ", ".join(f"{count} {route}" for route, count in saved.routes.items())
    ways = ", ".join(f"{route} {money.show(usd)}" for route, usd in saved.by_route.items())
    verb = "saved" if saved.saved_usd >= 0 else "cost more"
    return [
        (
            f"router: {routes}; {money.exact(saved.usd)} where Gemini alone would have cost "
            f"{money.exact(saved.baseline_usd)}: {verb} {money.exact(abs(saved.saved_usd))} ({ways})"
        ),
        f"assumed: {saved.assumption}",
    ]


def _reconciled(session: Session, billing: Path) -> Reconciled:
    from potstill.cost.reconcile import read_log, reconcile
    from potstill.ledger import read_attempts
    from potstill.pricing.book import load_prices

    attempts = read_attempts(session.workspace.ledger)
    return reconcile(attempts, read_log(billing), load_prices(session.config.prices))


def _against(matched: Reconciled, money: Currency) -> str:
    verdict = "they agree" if matched.agrees else f"unexplained: {money.exact(matched.unexplained_usd)}"
    return (
        f"billing log: {money.exact(matched.log_usd)} billed, {money.exact(matched.ledger_usd)} in the ledger, "
        f"{money.exact(matched.lost_usd)} for {counted(matched.lost, 'request')} without a reply "
        f"(held for those: {money.exact(matched.held_usd)}); {verdict}"
    )
