"""One table, shown as text, Markdown or CSV: what every `potstill cost` command prints."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from potstill.errors import UsageError

Form = Literal["text", "markdown", "csv"]
FIGURE = re.compile(r"[+-](\$|[A-Z]{3} )?[0-9.,]+%?")


@dataclass(frozen=True)
class Table:
    """Rows under heads, with a title; columns of figures are set flush right."""

    heads: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    title: str = ""
    figures: frozenset[str] = field(default=frozenset())


def form_of(*, markdown: bool, as_csv: bool, as_json: bool) -> Form:
    """The one form that was asked for; raises UsageError for two at once."""
    asked = [name for name, given in (("--markdown", markdown), ("--csv", as_csv), ("--json", as_json)) if given]
    if len(asked) > 1:
        message = f"{' and '.join(asked)} exclude each other"
        raise UsageError(message)
    return "markdown" if markdown else "csv" if as_csv else "text"


def page(form: Form, tables: Sequence[Table], notes: Sequence[str] = (), *, tag: str = "") -> str:
    """Tables and notes as one text. In CSV the notes are left out, and several tables stand below one another.

    `tag` is a hidden line by which a CI job finds its own comment again, so that it updates instead of adding one.
    """
    if form == "csv":
        return "\n".join(_csv(table) for table in tables)
    if form == "markdown":
        head = [f"<!-- {tag} -->"] if tag else []
        return "\n\n".join([*head, *(_markdown(table) for table in tables), *(f"> {_cell(note)}" for note in notes)])
    return "\n\n".join([*(_text(table) for table in tables), *(["\n".join(notes)] if notes else [])])


def width(text: str) -> int:
    """Columns that a text takes on a terminal; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "FW" else 1 for character in text)


def _text(table: Table) -> str:
    lines = (table.heads, *table.rows)
    widths = [max(width(row[column]) for row in lines) for column in range(len(table.heads))]
    right = [head in table.figures for head in table.heads]
    shown = ["  ".join(map(_padded, row, widths, right)).rstrip() for row in lines]
    return "\n".join([*([table.title] if table.title else []), *shown])


def _padded(text: str, columns: int, right: bool) -> str:
    space = " " * (columns - width(text))
    return space + text if right else text + space


def _markdown(table: Table) -> str:
    rule = ["---:" if head in table.figures else "---" for head in table.heads]
    lines = [table.heads, rule, *([_cell(cell) for cell in row] for row in table.rows)]
    title = [f"**{table.title}**", ""] if table.title else []
    return "\n".join([*title, *(f"| {' | '.join(row)} |" for row in lines)])


def _cell(text: str) -> str:
    """Text from files as text: no cell, tag, mention or line of its own."""
    safe = (
        text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "\\`").replace("@", "@\u200b")
    )
    return " ".join(safe.split())


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.heads)
    writer.writerows([_inert(cell) for cell in row] for row in table.rows)
    return out.getvalue().rstrip("\n")


def _inert(cell: str) -> str:
    """A text that a spreadsheet would take for a formula starts with an apostrophe; figures stay figures."""
    risky = cell[:1] in {"=", "+", "-", "@"} and cell != "-" and not FIGURE.fullmatch(cell)
    return f"'{cell}" if risky else cell
