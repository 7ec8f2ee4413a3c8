"""`potstill cost prices`: the price book, its limits, and what machines cost, each figure with its day and source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.cost.money import currency_of, day, plain, today
from potstill.cli.cost.tables import Table, form_of, page
from potstill.cli.session import Session, with_session

if TYPE_CHECKING:
    from datetime import date

    from potstill.pricing.book import PriceBook
    from potstill.pricing.compute import Compute
    from potstill.pricing.rows import Model

HEADS = ("model", "service", "from", "to", "over", "input", "output", "cached", "storage", "source", "as of")
FIGURES = frozenset({"over", "input", "output", "cached", "storage", "an hour", "rpm", "tpm", "rpd", "batch queue"})


@with_session(book="prices.file", currency="prices.currency", rate="prices.rate")
def prices(  # noqa: PLR0913, PLR0917  (one option a filter)
    session: Session,
    name: Annotated[str, typer.Argument(help="Only models or machines whose name holds this.")] = "",
    service: Annotated[str | None, typer.Option(help="Only this service.")] = None,
    on: Annotated[str | None, typer.Option(help="Only what holds on this day, YYYY-MM-DD.")] = None,
    limits: Annotated[bool, typer.Option("--limits", help="Quotas by tier instead of prices.")] = False,
    machines: Annotated[bool, typer.Option("--machines", help="GPU rents and electricity instead.")] = False,
    sources: Annotated[bool, typer.Option("--sources", help="Where the figures were read instead.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown tables.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Show the price book. Dollars per million tokens, with days, tiers and sources; and what changes in the next 60 days."""
    from potstill.pricing.book import load_prices
    from potstill.pricing.changes import AHEAD, age_warning, changes
    from potstill.pricing.compute import load_compute

    form = form_of(markdown=markdown, as_csv=as_csv, as_json=session.as_json)
    book, money, now = load_prices(session.config.prices), currency_of(session.config.prices), today()
    models = [model for model in book.models() if name in model.id or any(name in alias for alias in model.aliases)]
    coming = changes(book, now, now + AHEAD, frozenset(model.id for model in models))
    if machines:
        tables = _machines(load_compute(), name)
    elif limits:
        tables = _limits(book, name)
    elif sources:
        tables = [_sources(book)]
    else:
        rows = [row for model in models for row in _prices(model, service, day(on, "--on"))]
        tables = [Table(HEADS, rows, f"book {book.name}, read {book.read_on}; dollars a million tokens", FIGURES)]
    facts = [_facts(model) for model in models] if name and not machines else []
    notes = [*facts, *(f"{item.day}: {item.text}" for item in coming), age_warning(book, now), money.note]
    document = {
        "book": book.name,
        "read_on": str(book.read_on),
        "age_days": (now - book.read_on).days,
        "tables": [[dict(zip(table.heads, row, strict=True)) for row in table.rows] for table in tables],
        "models": [_model(model) for model in models],
        "ahead": [{"on": str(item.day), "model": item.model, "what": item.text} for item in coming],
    }
    session.show(document, page(form, tables, [line for line in notes if line]))


def _prices(model: Model, service: str | None, on: date | None) -> Iterator[tuple[str, ...]]:
    for row in model.prices:
        if (service and row.service != service) or (on and (model.gone(on) or not row.holds_on(on))):
            continue
        figures = (row.input, row.output, row.cached, row.storage.value if row.storage else None)
        yield (
            *(model.id, row.service, str(row.valid_from or ""), str(row.valid_to or ""), str(row.prompt_over or "")),
            *("" if figure is None else plain(figure) for figure in figures),
            row.source + (" (derived)" if row.derived else ""),
            row.as_of,
        )


def _limits(book: PriceBook, name: str) -> list[Table]:
    rows = [
        (
            *(row.model, row.tier, *(str(value or "") for value in (row.rpm, row.tpm_input, row.rpd))),
            *(
                str(book.enqueued_tokens(row.model, row.tier) or ""),
                "yes" if row.superseded else "",
                row.source,
                row.as_of,
            ),
        )
        for row in book.limits
        if name in row.model
    ]
    tiers = [
        (
            *(
                tier.tier,
                tier.qualification,
                *(plain(v) if v else "" for v in (tier.usd_per_10_min, tier.monthly_cap_usd)),
            ),
            *(tier.source, tier.as_of),
        )
        for tier in book.data.tiers
    ]
    heads = ("model", "tier", "rpm", "tpm", "rpd", "batch queue", "superseded", "source", "as of")
    rules = ("tier", "to qualify", "$ in 10 minutes", "$ a month", "source", "as of")
    return [Table(heads, rows, "quotas (3.x: published nowhere)", FIGURES), Table(rules, tiers, "tiers", FIGURES)]


def _machines(compute: Compute, name: str) -> list[Table]:
    gpus = [
        (row.id, row.provider, row.gpu, plain(row.usd_per_hour), row.card or "", row.source, row.as_of)
        for row in compute.gpus
        if name in row.id
    ]
    power = [
        (row.id, row.region, plain(row.per_kwh), row.currency, row.source, row.as_of) for row in compute.electricity
    ]
    cards = [(row.name, plain(row.tflops), plain(row.watts), row.source, row.as_of) for row in compute.cards]
    return [
        Table(("id", "provider", "gpu", "an hour", "card", "source", "as of"), gpus, "rents, dollars an hour", FIGURES),
        Table(("id", "region", "a kWh", "currency", "source", "as of"), power, "electricity"),
        Table(("card", "TFLOPS", "watts", "source", "as of"), cards, "cards: dense 16-bit peak, board power"),
    ]


def _sources(book: PriceBook) -> Table:
    rows = [
        (key, source.kind, source.as_of or "", source.url or source.package or "", source.what)
        for key, source in book.data.sources.items()
    ]
    return Table(("source", "kind", "as of", "where", "what"), rows, f"sources of book {book.name}")


def _facts(model: Model) -> str:
    """One line on a model: what it is, until when, and what comes after."""
    gone = f"; shut down {model.shutdown}" if model.shutdown else ""
    then = f", requests then go to {model.routed_to}" if model.routed_to else ""
    instead = f", use {model.replacement}" if model.replacement and not model.routed_to else ""
    free = {True: "; free tier", False: "; paid only", None: "; free tier not known"}[model.free_tier]
    return f"{model.id}: {model.status}{gone}{then}{instead}{free}" + (f"; {model.note}" if model.note else "")


def _model(model: Model) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
