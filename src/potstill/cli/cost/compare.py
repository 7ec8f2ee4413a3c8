"""`potstill cost compare`: ways to answer the same queries, side by side."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.cost.chart import Curve, bars, draw
from potstill.cli.cost.money import Currency, currency_of, money, plain, plain_data, share, today
from potstill.cli.cost.tables import Table, form_of, page
from potstill.cli.session import Session, with_session

if TYPE_CHECKING:
    from potstill.cost.compare import Comparison, Mix
    from potstill.cost.scenarios import Load, MachineSpec, Pricing

HEADS = ("scheme", "initial", "a query", "queries a day", "by", "a month", "even after", "in days", "cheaper from")
FIGURES = frozenset(HEADS[1:]) - {"by"}
POINTS = 61
SHORTEST_S = Decimal("0.001")


@with_session(model="teacher.model", book="prices.file", currency="prices.currency", rate="prices.rate")
def compare(  # noqa: PLR0913, PLR0917  (one option an assumption)
    session: Session,
    queries: Annotated[int | None, typer.Option(min=1, help="Queries a day. [1000]")] = None,
    input_tokens: Annotated[int | None, typer.Option(min=0, help="Tokens of a prompt. [500]")] = None,
    output_tokens: Annotated[int | None, typer.Option(min=0, help="Tokens of an answer. [2000]")] = None,
    horizon: Annotated[int | None, typer.Option(min=1, help="Days over which an investment is spread. [365]")] = None,
    hit_rate: Annotated[str | None, typer.Option(help="Share answered by the cache; else from the traces.")] = None,
    escalation: Annotated[
        str | None, typer.Option(help="Share of misses sent to Gemini; else from the traces.")
    ] = None,
    merged_roles: Annotated[int, typer.Option(min=0, help="Students' answers that a Gemini call carries.")] = 0,
    hardware: Annotated[str, typer.Option(help="Dollars for hardware and training, beside the data.")] = "0",
    machine: Annotated[str | None, typer.Option(help="Rented machine by id; else an own one by its power.")] = None,
    to_zero: Annotated[bool, typer.Option("--to-zero", help="The machine is paid only while it is used.")] = False,
    watts: Annotated[str, typer.Option(help="Power of an own machine at work.")] = "350",
    idle_watts: Annotated[str, typer.Option(help="Power of an own machine that waits.")] = "0",
    kwh: Annotated[str, typer.Option(help="Dollars a kWh, or a region; the default is an assumption.")] = "0.18",
    seconds: Annotated[str, typer.Option(help="Seconds of the machine per answer.")] = "2",
    scenarios: Annotated[Path | None, typer.Option(help="YAML file with scenarios of your own.")] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="What moves the month most.")] = False,
    chart: Annotated[Path | None, typer.Option(help="Draw it: a .png or .svg file.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown tables.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Compare Gemini, a student, and both. Or your own scenarios: initial cost, a query, a day, a month."""
    from potstill.cost.compare import compare as run_compare
    from potstill.cost.compare import mix_of
    from potstill.cost.report import report as run_report
    from potstill.cost.scenarios import Load, MachineSpec, four_schemes, read_scenarios

    form = form_of(markdown=markdown, as_csv=as_csv, as_json=session.as_json)
    shown = currency_of(session.config.prices)
    file = read_scenarios(scenarios) if scenarios else None
    given = Load(queries_a_day=queries, input_tokens=input_tokens, output_tokens=output_tokens, horizon_days=horizon)
    load = given.over(file).over(Load.default())
    pricing, known = _pricing(session, load), run_report(session.workspace)
    mix = mix_of(known.saved, share(hit_rate, "--hit-rate"), share(escalation, "--escalation"))
    own = MachineSpec(
        id=machine,
        watts=money(watts if machine is None else "0", "--watts"),
        idle_watts=money(idle_watts if machine is None else "0", "--idle-watts"),
        kwh=kwh,
        scale="to-zero" if to_zero else "always-on",
        seconds_per_answer=max(SHORTEST_S, money(seconds, "--seconds")),
    )
    hybrid = {"machine": own, "hit_rate": mix.hit_rate, "escalation": mix.escalation, "merged_roles": merged_roles}
    four = four_schemes(pricing, hybrid, known.total.usd + money(hardware, "--hardware"))
    found = run_compare(file.scenarios if file else four, pricing, load)
    curves = _curves(found, load)
    notes = [*_notes(session, found, load, pricing), *([] if file else [_hybrid_note(mix, own)]), shown.note]
    tables = [_table(found, shown), *(_sensitivity(found, shown) if sensitivity else [])]
    text = page(form, tables, [note for note in notes if note])
    if form == "text":
        text += f"\n\n{bars(curves, shown, load.days)}"
    if chart:
        draw(chart, _days(load), curves, f"{load.queries} queries a day, {session.config.teacher.model}", shown)
    document = {
        "load": load.model_dump(exclude={"scenarios"}),
        "mix": None if file else asdict(mix),
        "schemes": [asdict(scheme) for scheme in found.schemes],
        "scenarios": [asdict(scenario) for scenario in found.scenarios],
        "sensitivity": {
            "of": found.subject,
            "grid": [asdict(cell) for cell in found.grid],
            "swings": [asdict(swing) for swing in found.swings],
        },
        "notes": notes,
        "currency": shown.document,
    }
    session.show(plain_data(document), text)


def _pricing(session: Session, load: Load) -> Pricing:
    from potstill.cost.scenarios import Pricing
    from potstill.pricing.book import load_prices
    from potstill.pricing.compute import load_compute
    from potstill.records import Usage

    usage = Usage(input_tokens=load.input_tokens or 0, output_tokens=load.output_tokens or 0)
    return Pricing(load_prices(session.config.prices), load_compute(), session.config, today(), usage)


def _table(found: Comparison, shown: Currency) -> Table:
    rows = [
        (
            scheme.name,
            shown.show(scheme.initial_usd),
            shown.show(scheme.query_usd),
            "not published" if scheme.capacity is None else f"{scheme.capacity:,}",
            scheme.limit,
            shown.show(scheme.month_usd),
            _count(scheme.break_even_queries),
            _count(scheme.break_even_days),
            _count(scheme.cheaper_from),
        )
        for scheme in found.schemes
    ]
    return Table(HEADS, rows, "", FIGURES)


def _sensitivity(found: Comparison, shown: Currency) -> list[Table]:
    swings = [(swing.input, shown.show(swing.less_usd), shown.show(swing.more_usd)) for swing in found.swings]
    heads = ("input", "halved", "half more")
    tables = [
        Table(heads, swings, f"{found.subject}: a month, the input that moves it most first", frozenset(heads[1:]))
    ]
    rates = sorted({cell.hit_rate for cell in found.grid})
    if rates:
        columns = (
            "hit rate",
            *(f"{plain(rate * 100)} % to Gemini" for rate in sorted({c.escalation for c in found.grid})),
        )
        rows = [
            (f"{plain(rate * 100)} %", *(shown.show(c.month_usd) for c in found.grid if c.hit_rate == rate))
            for rate in rates
        ]
        title = f"{found.subject}: a month, by hit rate and share of misses sent to Gemini"
        tables.append(Table(columns, rows, title, frozenset(columns)))
    return tables


def _notes(session: Session, found: Comparison, load: Load, pricing: Pricing) -> list[str]:
    from potstill.config import PricesConfig
    from potstill.cost.call import outdated
    from potstill.pricing.book import load_prices
    from potstill.pricing.changes import age_warning

    model, current = session.config.teacher.model, load_prices(PricesConfig())
    return [
        (
            f"{load.queries} queries a day of {load.input_tokens} + {load.output_tokens} tokens, {model} on {pricing.on}; "
            f"break-even against gemini paid; investments spread over {load.days} days for `cheaper from` (queries a day)"
        ),
        *(note for scheme in found.schemes for note in scheme.notes),
        outdated(pricing.book, current, pricing.usage, model, pricing.on),
        *(f"the source design states: {c.what}: ${c.usd:f} ({c.remark})" for c in pricing.book.data.claims),
        age_warning(pricing.book, pricing.on),
    ]


def _hybrid_note(mix: Mix, own: MachineSpec) -> str:
    machine = own.id or f"an own machine, {own.watts:f} W at work, {own.idle_watts:f} W idle, kWh {own.kwh}"
    paid = "paid only while used" if own.scale == "to-zero" else "paid day and night"
    return (
        f"hybrid: {mix.hit_rate:.0%} of the queries hit the cache, {mix.escalation:.0%} of the others go to Gemini as "
        f"well ({mix.origin}); {machine}, {own.seconds_per_answer:f} s an answer, {paid}"
    )


def _curves(found: Comparison, load: Load) -> list[Curve]:
    from potstill.cost.compare import cumulative

    days = _days(load)
    return [
        Curve(scheme.name, cumulative(scenario, load.queries, days), scheme.month_usd, scheme.break_even_days)
        for scheme, scenario in zip(found.schemes, found.scenarios, strict=True)
    ]


def _days(load: Load) -> list[int]:
    return [load.days * point // (POINTS - 1) for point in range(POINTS)]


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
