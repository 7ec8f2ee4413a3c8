"""`potstill cost diff`: what a change of the config does to the bill, for pull requests."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.cost.money import Currency, currency_of, money, plain_data, share, today
from potstill.cli.cost.tables import Table, form_of, page
from potstill.cli.session import Session, with_session
from potstill.errors import BudgetError

if TYPE_CHECKING:
    from potstill.cost.diff import Difference, Priced
    from potstill.cost.whole import Options

HEADS = ("stage", "before", "after", "change", "", "at most before", "at most after")
FIGURES = frozenset(HEADS[1:])
CHOSEN = Path("potstill.yaml")


@with_session(currency="prices.currency", rate="prices.rate")
def diff(  # noqa: PLR0913, PLR0917  (one option a figure)
    session: Session,
    before: Annotated[str, typer.Argument(help="FILE, REVISION:FILE, or a REVISION of the file after.")],
    after: Annotated[str, typer.Argument(help="FILE or REVISION:FILE.")] = str(CHOSEN),
    limit: Annotated[str | None, typer.Option(help="Exit with 4 when it rises by more than this, dollars.")] = None,
    judge: Annotated[str, typer.Option(help="Share of the answers that Gemini judges as well.")] = "0",
    queries: Annotated[int, typer.Option(min=0, help="Queries a day for `infer`; 0 leaves the stage out.")] = 1000,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer, as you state.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown, for a CI comment.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
) -> None:
    """Show what a change of the config costs. Between two files, or git revisions of one with the prompts of each."""
    from potstill.cost.diff import difference
    from potstill.cost.estimate import Assumptions
    from potstill.cost.whole import Options

    form = form_of(markdown=markdown, as_csv=as_csv, as_json=session.as_json)
    shown = currency_of(session.config.prices)
    given = Assumptions(output_tokens=output_tokens)
    options = Options(given, judge_share=share(judge, "--judge") or Decimal(0), queries_a_day=queries)
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        old = _priced(session, _named(before, after), options, Path(folder) / "before")
        new = _priced(session, after, options, Path(folder) / "after")
    found = difference(old, new)
    tables = [_deltas(found, shown, old, new), *_others(found)]
    error = _above(found.change_usd, limit)
    notes = [f"output: {new.estimate.assumption}", *([error.message] if error else []), shown.note]
    document = {
        "before": old.name,
        "after": new.name,
        "change_usd": found.change_usd,
        "stages": [{**asdict(delta), "change_usd": delta.change_usd} for delta in found.deltas],
        "figures": [list(row) for row in found.figures],
        "keys": [list(row) for row in found.keys],
        "currency": shown.document,
    }
    session.show(plain_data(document), page(form, tables, [note for note in notes if note], tag="potstill cost diff"))
    if error:
        session.complain(error)
        raise typer.Exit(error.exit_code)


def _named(before: str, after: str) -> str:
    """`main` alone means the same file in that revision."""
    if Path(before).is_file() or ":" in before:
        return before
    return f"{before}:{after.rpartition(':')[2]}"


def _priced(session: Session, spec: str, options: Options, folder: Path) -> Priced:
    """One version with its estimate, by the ledger of the workspace at hand."""
    from potstill.cost.diff import Priced
    from potstill.cost.revisions import load_version
    from potstill.cost.whole import price_all

    version = load_version(spec, session.settings, folder)
    whole = price_all(version.config, session.workspace, today(), options)
    return Priced(version.name, version.config, whole.estimate, whole.stages)


def _deltas(found: Difference, shown: Currency, old: Priced, new: Priced) -> Table:
    rows = [
        (
            delta.name,
            shown.show(delta.before_usd),
            shown.show(delta.after_usd),
            _signed(delta.change_usd, shown),
            "-" if delta.change_share is None else f"{delta.change_share:+.0%}",
            shown.show(delta.before_worst_usd),
            shown.show(delta.after_worst_usd),
        )
        for delta in found.deltas
    ]
    return Table(HEADS, rows, f"{old.name} -> {new.name}: {_signed(found.change_usd, shown)} at Gemini", FIGURES)


def _others(found: Difference) -> list[Table]:
    heads = ("before", "after")
    tables = [Table(("figure", *heads), found.figures, "why", frozenset(heads))] if found.figures else []
    return [*tables, *([Table(("config key", *heads), found.keys, "config")] if found.keys else [])]


def _signed(usd: Decimal, shown: Currency) -> str:
    return f"+{shown.show(usd)}" if usd > 0 else shown.show(usd)


def _above(change: Decimal, limit: str | None) -> BudgetError | None:
    if limit is None or change <= money(limit, "--limit"):
        return None
    return BudgetError(f"the price rises by ${change:.4f}, more than ${limit}", hint="or raise --limit")
