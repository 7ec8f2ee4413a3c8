"""`potstill cost estimate`: what a config will cost, before any key exists."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.cost.money import Currency, currency_of, money, plain_data, share, today
from potstill.cli.cost.tables import Table, form_of, page
from potstill.cli.session import Session, with_session
from potstill.errors import BudgetError, UsageError
from potstill.wording import counted

if TYPE_CHECKING:
    from potstill.cost.estimate import Estimate
    from potstill.cost.scenarios import Pricing
    from potstill.cost.stages import Stage

HEADS = ("service", "expected", "90 % low", "90 % high", "at most", "time", "held back by")
STAGE_HEADS = ("stage", "expected", "90 % low", "90 % high", "at most", "rests on")
FIGURES = frozenset({"expected", "90 % low", "90 % high", "at most", "time"})
TAG = "potstill cost estimate"
ZERO = Decimal(0)
FREE = (
    "free tier: nothing is charged within its quota, and prompts may train the provider's products; "
    "`at most` is the list price, which the ledger's budget holds"
)


@with_session(
    model="teacher.model",
    prompts="generate.prompts",
    roles="generate.roles",
    max_cost="budget.max_usd",
    tokenizer="prices.tokenizer",
    book="prices.file",
    currency="prices.currency",
    rate="prices.rate",
)
def estimate(  # noqa: PLR0913, PLR0917  (one option an assumption)
    session: Session,
    limit: Annotated[str | None, typer.Option(help="Exit with code 4 above this many dollars.")] = None,
    hold: Annotated[str, typer.Option(help="What the limit is held against: expected, high or worst.")] = "expected",
    pilot: Annotated[Path | None, typer.Option(help="Answers to learn lengths from: dataset file or ledger.")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer, as you state.")] = None,
    latency: Annotated[float | None, typer.Option(min=0, help="Seconds of one answer, for the time to finish.")] = None,
    judge: Annotated[str, typer.Option(help="Share of the answers that Gemini judges as well.")] = "0",
    queries: Annotated[int, typer.Option(min=0, help="Queries a day for `infer`; 0 leaves the stage out.")] = 1000,
    machine: Annotated[
        str, typer.Option(help="Where to distill: rented machine by id, or own card by name.")
    ] = "RTX 4090",
    kwh: Annotated[str, typer.Option(help="Dollars a kWh, or a region.")] = "0.18",
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown, for a CI comment.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Price a config, stage by stage, before it is run. Needs no key and no network."""
    from potstill.cost.estimate import Assumptions
    from potstill.cost.stages import held
    from potstill.cost.whole import Options, price_all

    form = form_of(markdown=markdown, as_csv=as_csv, as_json=session.as_json)
    if hold not in {"expected", "high", "worst"}:
        message = f"--hold {hold!r}: one of expected, high, worst"
        raise UsageError(message)
    config, shown = session.config, currency_of(session.config.prices)
    given = Assumptions(pilot, output_tokens, latency)
    options = Options(given, share(judge, "--judge") or ZERO, queries, machine, kwh)
    whole = price_all(config, session.workspace, today(), options)
    found, steps, pricing = whole.estimate, whole.stages, whole.pricing
    notes = [*_notes(found, pricing), shown.note]
    tables = [_services(found, config.teacher.model, shown), _stages(steps, shown)]
    document = {
        **asdict(found),
        "model": config.teacher.model,
        "service": config.teacher.service,
        "stages": [asdict(stage) for stage in steps],
        "currency": shown.document,
    }
    most = money(limit, "--limit") if limit is not None else config.budget.max_usd
    over = _over(held(steps, hold), most, hold)
    if over:
        notes.append(over.message)
    session.show(plain_data(document), page(form, tables, [note for note in notes if note], tag=TAG))
    if over:
        session.complain(over)
        raise typer.Exit(over.exit_code)


def _services(found: Estimate, model: str, shown: Currency) -> Table:
    rows = [
        (
            offer.service,
            *map(shown.show, (offer.expected_usd, offer.low_usd, offer.high_usd, offer.worst_usd)),
            duration(offer.finish.seconds),
            offer.finish.limit,
        )
        for offer in found.services
    ]
    title = (
        f"{model}: {counted(found.todo, 'answer')} to pay for ({found.paid} of {found.cells} are in the ledger), "
        f"{found.input_tokens:,} + {found.output_tokens:,} tokens"
    )
    return Table(HEADS, rows, title, FIGURES)


def _stages(steps: tuple[Stage, ...], shown: Currency) -> Table:
    rows = [
        (
            stage.name,
            *map(shown.show, (stage.expected_usd, stage.low_usd, stage.high_usd, stage.worst_usd)),
            stage.basis,
        )
        for stage in steps
    ]
    return Table(STAGE_HEADS, rows, "stage by stage", FIGURES)


def _notes(found: Estimate, pricing: Pricing) -> list[str]:
    from potstill.pricing.changes import age_warning

    warnings = sorted({offer.finish.warning for offer in found.services if offer.finish.warning})
    return [
        f"input: {found.counted}",
        f"output: {found.assumption}",
        f"time: {found.rates_basis}",
        *warnings,
        *(f"{change.day}: {change.text}" for change in found.ahead),
        *([FREE] if _free(pricing) else []),
        age_warning(pricing.book, pricing.on),
    ]


def _free(pricing: Pricing) -> bool:
    return pricing.config.teacher.tier == "free"


def _over(value: Decimal, most: Decimal | None, hold: str) -> BudgetError | None:
    """The error that ends the command in 4, where what Gemini is paid once is above the limit."""
    if most is None or value <= most:
        return None
    message = f"the estimate ({hold}, generate and judge) of ${value:.4f} is above ${most:f}"
    return BudgetError(message, hint="fewer prompts, roles or samples, a cheaper model, or --set teacher.service=batch")


def duration(seconds: float) -> str:
    """A span of time for a reader."""
    if seconds < 90:  # noqa: PLR2004  (a minute and a half)
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86_400 else f"{seconds / 86_400:.1f} days"
