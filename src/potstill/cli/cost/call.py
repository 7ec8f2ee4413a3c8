"""`potstill cost call`: one call, all services side by side."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from potstill.cli.cost.money import Currency, currency_of, day, plain, today
from potstill.cli.cost.tables import Table, form_of, page
from potstill.cli.session import Session, with_session
from potstill.errors import UsageError


@with_session(model="teacher.model", book="prices.file", currency="prices.currency", rate="prices.rate")
def call(  # noqa: PLR0913, PLR0917  (one option a figure)
    session: Session,
    input_tokens: Annotated[int | None, typer.Option(min=0, help="Tokens of the prompt.")] = None,
    output_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the answer.")] = 0,
    thinking_tokens: Annotated[int, typer.Option(min=0, help="Thinking tokens, billed as output.")] = 0,
    cached_tokens: Annotated[int, typer.Option(min=0, help="Tokens of the prompt that come from a cache.")] = 0,
    text: Annotated[Path | None, typer.Option(help="File with the prompt, counted; `-`: standard input.")] = None,
    calls: Annotated[int, typer.Option(min=1, help="So many calls.")] = 1,
    as_of: Annotated[str | None, typer.Option(help="Price on another day, YYYY-MM-DD.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Price one call in every service. A retired model is priced as what answers, or as on its last day."""
    from potstill.config import PricesConfig
    from potstill.cost.call import ahead, outdated, quotes
    from potstill.pricing.book import load_prices
    from potstill.pricing.changes import age_warning
    from potstill.records import Usage

    form = form_of(markdown=markdown, as_csv=as_csv, as_json=session.as_json)
    tokens, counted = _prompt(session, input_tokens, text)
    if cached_tokens > tokens:
        message = f"--cached-tokens {cached_tokens} is more than the prompt's {tokens}"
        raise UsageError(message)
    usage = Usage(
        input_tokens=tokens, output_tokens=output_tokens, thinking_tokens=thinking_tokens, cached_tokens=cached_tokens
    )
    book, model, now = load_prices(session.config.prices), session.config.teacher.model, today()
    money = currency_of(session.config.prices)
    on = day(as_of, "--as-of")
    found = quotes(book, usage, model, today=now, as_of=on)
    first = found["standard"]
    coming = ahead(book, usage, model, on or now)
    note = outdated(book, load_prices(PricesConfig()), usage, model, now) if book.name != "current" else ""
    notes = [
        first.note,
        counted,
        *(f"from {item.on}: {item.what}" + _then(money, item.usd, calls) for item in coming),
        *(f"derived, printed by no source: {name}" for name, row in found.items() if row.price.derived),
        note,
        age_warning(book, now),
        money.note,
    ]
    document = {
        "model": model,
        "on": str(first.on),
        "note": first.note,
        "usage": usage.model_dump(),
        "calls": calls,
        "services": {
            name: {"usd": plain(row.usd * calls), "price_id": row.price.id, "derived": row.price.derived}
            for name, row in found.items()
        },
        "ahead": [
            {"on": str(item.on), "what": item.what, "usd": None if item.usd is None else plain(item.usd * calls)}
            for item in coming
        ],
        "outdated": note,
        "currency": money.document,
    }
    rows = [(name, money.exact(row.usd * calls), str(row.on), row.price.id) for name, row in found.items()]
    heads = ("service", "cost", "on", "price")
    title = f"{model}: {tokens} + {output_tokens + thinking_tokens} tokens" + (f", {calls} calls" if calls > 1 else "")
    table = Table(heads, rows, title, frozenset({"cost"}))
    session.show(document, page(form, [table], [line for line in notes if line]))


def _prompt(session: Session, input_tokens: int | None, text: Path | None) -> tuple[int, str]:
    """The prompt's tokens, given or counted, and how they were counted; raises UsageError for both or neither."""
    from potstill.files import read_text
    from potstill.pricing.counting import find_counter

    if (input_tokens is None) == (text is None):
        message = "give either --input-tokens or --text"
        raise UsageError(message)
    if text is None:
        return input_tokens or 0, ""
    content = sys.stdin.read() if str(text) == "-" else read_text(text, "text file")
    config = session.config
    counter = find_counter(config.prices.tokenizer, config.language, config.student.base)
    tokens = counter.count(content)
    return tokens, f"{tokens} input tokens counted by {counter.basis}"


def _then(money: Currency, usd: Decimal | None, calls: int) -> str:
    return "" if usd is None else f": this would cost {money.exact(usd * calls)}"
