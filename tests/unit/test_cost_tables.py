"""Tables, amounts and pictures: text stays text in every form, and a picture is to scale."""

from __future__ import annotations

import csv
import io
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.cli.cost.chart import Curve, bars, draw
from potstill.cli.cost.money import Currency, currency_of, money, plain, plain_data, share
from potstill.cli.cost.tables import Table, page, width
from potstill.config import PricesConfig
from potstill.errors import ConfigError, UsageError

CELLS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_csv_gives_back_its_cells(rows: list[tuple[str, str]]) -> None:
    """Commas, quotes and line ends survive; what a spreadsheet would run is disarmed by an apostrophe."""
    text = page("csv", [Table(("a", "b"), rows)])
    found = list(csv.reader(io.StringIO(text)))[1:]
    for given_row, read in zip(rows, found, strict=True):
        for cell, back in zip(given_row, read, strict=True):
            assert back in {cell, f"'{cell}"}
            assert not back.startswith(("=", "@"))


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_markdown_keeps_every_row_on_its_line(rows: list[tuple[str, str]]) -> None:
    """No cell breaks out of its table: as many lines as rows, and no tag or mention is left alive."""
    lines = page("markdown", [Table(("a", "b"), rows)]).split("\n")
    assert len(lines) == len(rows) + 2
    assert not any("<" in line or "@" in line.replace("@\u200b", "") for line in lines)


def test_chinese_columns_line_up() -> None:
    """A Chinese character takes two columns, so that the next column starts at one place in every row."""
    text = page("text", [Table(("name", "x"), [("本機", "1"), ("cloud", "2")])])
    lines = text.split("\n")
    assert len({width(line[: line.rindex(last)]) for line, last in zip(lines, "x12", strict=True)}) == 1


def test_amounts() -> None:
    """Cents from a cent on, four digits below, every digit where it is asked for, and never an exponent."""
    assert [Currency().show(Decimal(text)) for text in ("1234.5", "0.0006375", "0", "-0.02")] == [
        "$1,234.50",
        "$0.0006375",
        "$0.00",
        "-$0.02",
    ]
    assert plain(Decimal("0E-12")) == "0"
    assert plain(Decimal("1.500")) == "1.5"
    assert Currency("TWD", Decimal("32.5")).exact(Decimal("0.00515")) == "TWD 0.167375"


def test_json_has_no_exponents_and_no_objects() -> None:
    """Decimals and days become texts at any depth; counts and names stay as they are."""
    found = plain_data({"a": Decimal("1E-7"), "b": (date(2026, 11, 24), [Decimal("1.50"), 3, None, True, "x"])})
    assert found == {"a": "0.0000001", "b": ["2026-11-24", ["1.5", 3, None, True, "x"]]}


def test_no_rate_is_built_in() -> None:
    """A currency without a rate, and a rate without a currency, are errors that say what is missing."""
    with pytest.raises(ConfigError, match="TWD"):
        currency_of(PricesConfig(currency="TWD"))
    with pytest.raises(ConfigError, match="USD"):
        currency_of(PricesConfig(rate=Decimal(32)))


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "one"])
def test_an_amount_is_a_number_of_at_least_nothing(text: str) -> None:
    """Anything else is refused, with the option's name."""
    with pytest.raises(UsageError, match="--limit"):
        money(text, "--limit")


def test_shares() -> None:
    """`0.4` and `40%` are the same share; more than all of it is none."""
    assert share("40%", "--hit-rate") == share("0.4", "--hit-rate") == Decimal("0.4")
    with pytest.raises(UsageError):
        share("140%", "--hit-rate")


CURVES = [
    Curve("本機", (Decimal(400), Decimal(410)), Decimal(1), 80),
    Curve("paid", (Decimal(0), Decimal(820)), Decimal(67)),
]


def test_bars_are_to_scale() -> None:
    """Half the money is half the bar, and the day of the break-even stands beside it."""
    lines = bars(CURVES, Currency(), 365).split("\n")
    assert [line.count("█") for line in lines[1:]] == [20, 40]
    assert "even after 80 days" in lines[1]


@pytest.mark.parametrize("name", ["chart.png", "chart.svg"])
def test_the_picture_is_drawn(tmp_path: Path, name: str) -> None:
    """A file of the kind that its ending says; a title that looks like a formula stays text."""
    draw(tmp_path / name, [0, 365], CURVES, "$_broken^{", Currency())
    head = (tmp_path / name).read_bytes()[:200]
    assert head.startswith(b"\x89PNG") or b"<?xml" in head
