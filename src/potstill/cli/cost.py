"""`potstill cost`: call, estimate, report, compare, prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.session import Session, with_session
from potstill.errors import BudgetError, UnknownModelError, UsageError

if TYPE_CHECKING:
    from potstill.pricing.book import PriceBook

cost_app = typer.Typer(
    help="Know before you spend, and see what was saved.", no_args_is_help=True, rich_markup_mode=None
)
STALE = timedelta(days=60)


@cost_app.command(name="call")
@with_session(model="teacher.model")
def call(
    session: Session,
    input_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the prompt.")],
    output_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the answer, thinking included.")],
    as_of: Annotated[str | None, typer.Option(help="Price on another day, YYYY-MM-DD.")] = None,
) -> None:
    """Price one call in every service. A retired model is priced as on its last day, and says so."""
    from potstill.cost.call import quote
    from potstill.pricing.book import SERVICES, load_prices
    from potstill.records import Usage

    book, model, day = load_prices(session.config.prices), session.config.teacher.model, _day(as_of)
    usage, quotes = Usage(input_tokens=input_tokens, output_tokens=output_tokens), {}
    for service in SERVICES:
        try:
            quotes[service] = quote(book, usage, model, service, today=datetime.now(UTC).date(), as_of=day)
        except UnknownModelError:
            if service == "standard":
                raise
    document = {name: {"usd": f"{row.usd.normalize():f}", "price_id": row.price.id} for name, row in quotes.items()}
    table = _table(("service", "usd", "price"), [(name, row["usd"], row["price_id"]) for name, row in document.items()])
    first = quotes["standard"]
    found = {"model": model, "on": str(first.on), "note": first.note, "services": document}
    session.show(found, f"{table}\n{first.note}".rstrip())


@cost_app.command(name="estimate")
@with_session(model="teacher.model", prompts="generate.prompts", roles="generate.roles", max_cost="budget.max_usd")
def estimate(
    session: Session,
    limit: Annotated[str | None, typer.Option(help="Exit with code 4 above this many dollars.")] = None,
    markdown: Annotated[bool, typer.Option(help="A Markdown table, for a CI comment.")] = False,
) -> None:
    """Price a generate run before it is made. Needs no key."""
    from potstill.cost.estimate import estimate as run_estimate
    from potstill.pricing.book import load_prices

    book = load_prices(session.config.prices)
    found = run_estimate(session.config, book, session.workspace, datetime.now(UTC).date())
    heads, rows = (
        ("service", "expected", "at most"),
        [(item.service, f"${item.expected_usd:.4f}", f"${item.worst_usd:.4f}") for item in found.services],
    )
    table = _markdown(heads, rows) if markdown else _table(heads, rows)
    minutes = f"; {found.minutes:.1f} minutes at the configured limits" if found.minutes else ""
    text = f"{found.cells} answers, about {found.input_tokens} input tokens, {found.assumption}{minutes}\n\n{table}"
    session.show({**asdict(found), "model": session.config.teacher.model}, text + _stale(book))
    chosen = next(
        (item for item in found.services if item.service == session.config.teacher.service), found.services[0]
    )
    most = _money(limit) if limit is not None else session.config.budget.max_usd
    if most is not None and chosen.expected_usd > most:
        error = BudgetError(f"the estimate of ${chosen.expected_usd:.4f} is above ${most:f}")
        session.complain(error)
        raise typer.Exit(error.exit_code)


@cost_app.command(name="report")
@with_session()
def report(session: Session) -> None:
    """Add up the ledger: by day, command, role, model and service, and what the router saved."""
    from potstill.cost.report import report as run_report

    found = run_report(session.workspace)
    rows = [("all", "", *_cells(found.total))]
    for name, group in found.groups.items():
        rows += [(name, value, *_cells(line)) for value, line in group.items()]
    text = _table(("by", "", "answers", "failed", "open", "billed", "possibly"), rows)
    if found.saved.routes:
        routes = ", ".join(f"{count} {route}" for route, count in found.saved.routes.items())
        text += f"\n\nrouter: {routes}; ${found.saved.usd:f} where Gemini alone would have cost ${found.saved.baseline_usd:f}"
        text += "\n(assumed for a hit: Gemini's answer would be as long as the stored one)"
    session.show(asdict(found), text)


@cost_app.command(name="compare")
@with_session(model="teacher.model")
def compare(  # noqa: PLR0913, PLR0917  (one option an assumption)
    session: Session,
    queries: Annotated[int, typer.Option(min=1, help="Queries a day.")] = 1000,
    input_tokens: Annotated[int, typer.Option(min=0, help="Tokens of a prompt.")] = 500,
    output_tokens: Annotated[int, typer.Option(min=0, help="Tokens of an answer.")] = 2000,
    gemini_share: Annotated[str | None, typer.Option(help="Share that reaches Gemini; else from the traces.")] = None,
    hardware: Annotated[str, typer.Option(help="Dollars for hardware and training, beside the data.")] = "0",
    watts: Annotated[str, typer.Option(help="Power of the local machine.")] = "350",
    kwh: Annotated[str, typer.Option(help="Dollars a kWh; the default is an assumption.")] = "0.18",
    seconds: Annotated[str, typer.Option(help="Seconds of the local machine per answer.")] = "2",
) -> None:
    """Gemini free, Gemini paid, hybrid and local: initial cost, cost a query, queries a day, cost a month."""
    from potstill.cost.compare import Facts
    from potstill.cost.compare import compare as run_compare
    from potstill.cost.report import report as run_report
    from potstill.pricing.book import load_prices
    from potstill.records import Usage

    book, model = load_prices(session.config.prices), session.config.teacher.model
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    known = run_report(session.workspace)
    share, origin = _share(known.saved.routes, gemini_share)
    limits = {row.tier: row.rpd for row in book.limits if row.model == model}
    facts = Facts(
        gemini_usd=book.cost(usage, model, "standard", datetime.now(UTC).date()).usd,
        queries_a_day=queries,
        gemini_share=share,
        initial_usd=known.total.usd + _money(hardware),
        watts=_money(watts),
        usd_per_kwh=_money(kwh),
        seconds_per_answer=max(_money(seconds), Decimal("0.001")),
        free_rpd=limits.get("free"),
        paid_rpd=limits.get(session.config.teacher.tier),
    )
    schemes = run_compare(facts)
    rows = [
        (
            item.name,
            f"${item.initial_usd:.2f}",
            f"${item.query_usd:.6f}",
            str(item.queries_a_day or "not published"),
            f"${item.month_usd:.2f}",
            str(item.break_even_queries or "-"),
        )
        for item in schemes
    ]
    table = _table(("scheme", "initial", "a query", "queries a day", "a month", "break-even"), rows)
    notes = (
        f"{queries} queries a day of {input_tokens} + {output_tokens} tokens with {model}; share that reaches Gemini "
        f"{share:.2f} ({origin}); {watts} W, ${kwh}/kWh, {seconds} s an answer; idle hours are not counted"
    )
    session.show({"facts": asdict(facts), "schemes": [asdict(item) for item in schemes]}, f"{table}\n\n{notes}")


@cost_app.command(name="prices")
@with_session()
def prices(
    session: Session, name: Annotated[str, typer.Argument(help="Only models whose name holds this.")] = ""
) -> None:
    """The price book: dollars per million tokens, with days, tiers and sources."""
    from potstill.pricing.book import load_prices

    book = load_prices(session.config.prices)
    rows = [
        (
            *(model.id, row.service, str(row.valid_from or ""), str(row.valid_to or ""), str(row.prompt_over or "")),
            *(f"{row.input:f}", f"{row.output:f}", f"{row.cached:f}" if row.cached is not None else "", row.source),
        )
        for model in book.models()
        if name in model.id
        for row in model.prices
    ]
    heads = ("model", "service", "from", "to", "over", "input", "output", "cached", "source")
    document = {"read_on": str(book.read_on), "prices": [dict(zip(heads, row, strict=True)) for row in rows]}
    session.show(document, _table(heads, rows) + _stale(book))


def _day(as_of: str | None) -> date | None:
    """The day that `--as-of` names."""
    try:
        return date.fromisoformat(as_of) if as_of is not None else None
    except ValueError as error:
        message = f"--as-of {as_of!r} is no day"
        raise UsageError(message, hint="use YYYY-MM-DD") from error


def _share(routes: dict[str, int], given: str | None) -> tuple[Decimal, str]:
    if given is not None:
        return _money(given), "given"
    if not routes:
        return Decimal("0.5"), "assumed; no traces yet"
    asked = routes.get("teacher", 0) + routes.get("merged", 0)
    return Decimal(asked) / sum(routes.values()), f"from {sum(routes.values())} traces"


def _money(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except ArithmeticError as error:
        message = f"{text!r} is no number"
        raise UsageError(message) from error
    if not value.is_finite() or value < 0:
        message = f"{text!r} must be a number of at least 0"
        raise UsageError(message)
    return value


def _cells(line: object) -> tuple[str, ...]:
    found = vars(line)
    counts = (str(found[name]) for name in ("answers", "failed", "open"))
    return (*counts, f"${found['usd']:f}", f"${found['possibly_usd']:f}")


def _stale(book: PriceBook) -> str:
    age = datetime.now(UTC).date() - book.read_on
    return f"\n\nwarning: the prices are {age.days} days old" if age > STALE else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)
    )


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (heads, tuple("---" for _ in heads), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
