"""Price files of the user's own: in place of the book, on top of it, and over single models; and what is refused."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from potstill.config import PricesConfig
from potstill.errors import ConfigError, InputError, UnknownModelError
from potstill.pricing.book import load_prices
from potstill.records import Usage

DAY = date(2026, 11, 24)
USAGE = Usage(input_tokens=500, output_tokens=2000)
CONTRACT = """
extends: current
read: 2026-11-24
sources: {contract: {what: our agreement}}
models:
  - id: gemini-3.5-flash-lite
    prices:
      - {service: standard, input: 0.1, output: 1.1, source: contract, as_of: 2026-11-01}
  - id: our-own-model
    prices:
      - {service: standard, from: 2026-11-01, input: 1, output: 2, source: contract, as_of: 2026-11-01}
"""


def test_a_file_on_top_changes_its_rows_alone(tmp_path: Path) -> None:
    """Own rows win, exactly as written; what they do not price stays as shipped, and new models are added."""
    path = tmp_path / "contract.yaml"
    path.write_text(CONTRACT)
    book = load_prices(PricesConfig(file=str(path)))
    assert book.cost(USAGE, "gemini-3.5-flash-lite", "standard", DAY).usd == Decimal("0.00225")
    assert book.cost(USAGE, "gemini-3.5-flash-lite", "batch", DAY).usd == Decimal("0.002575")
    assert book.cost(USAGE, "gemini-3.8-flash", "standard", DAY).usd == Decimal("0.007875")
    assert book.cost(USAGE, "our-own-model", "standard", DAY).usd == Decimal("0.0045")
    assert book.read_on == DAY
    with pytest.raises(UnknownModelError):
        book.cost(USAGE, "our-own-model", "standard", date(2026, 10, 31))


def test_the_source_designs_own_book_stays_reproducible() -> None:
    """Its worked call costs exactly what it says, under its own name, apart from today's prices."""
    book = load_prices(PricesConfig(file="source-design"))
    assert book.cost(USAGE, "gemini-2.5-flash", "standard", DAY).usd == Decimal("0.0006375")
    assert {claim.usd for claim in book.data.claims} >= {Decimal("0.0006375"), Decimal("1.125"), Decimal("0.0001")}


@pytest.mark.parametrize(
    ("name", "text", "needle"),
    [
        ("bad.json", '{"schema_version": 1,\n oops', "bad.json:2"),
        ("bad.yaml", "models: [\n", "bad.yaml:2"),
        ("field.yaml", "extends: current\nmodels: [{id: x, prices: [{service: standard, input: -1}]}]", "input"),
        ("base.yaml", "extends: tomorrow\n", "tomorrow"),
        ("id.yaml", "extends: current\nmodels: [{prices: []}]\n", "id"),
        ("list.json", "[]", "list.json"),
    ],
)
def test_a_bad_file_is_named_with_its_place(tmp_path: Path, name: str, text: str, needle: str) -> None:
    """Broken JSON and YAML, a negative price, an unknown base: each error names the file and the line or field."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_prices(PricesConfig(file=str(path)))
    assert needle in caught.value.message


def test_an_override_prices_all_services_or_one() -> None:
    """`input` and `output` hold for every service that has no price of its own; aliases are overridden with their model."""
    given = {"gemini-3.5-flash-lite": {"input": "0.2", "output": "2", "batch_input": "0.1", "batch_output": "1"}}
    book = load_prices(PricesConfig.model_validate({"overrides": given}))
    for name in ("gemini-3.5-flash-lite", "gemini-flash-lite-latest", "models/gemini-3.5-flash-lite"):
        assert book.cost(USAGE, name, "standard", DAY).usd == Decimal("0.0041")
        assert book.cost(USAGE, name, "flex", DAY).usd == Decimal("0.0041")
        assert book.cost(USAGE, name, "batch", DAY).usd == Decimal("0.00205")


@pytest.mark.parametrize("values", [{"input": 1}, {"input": 1, "output": -1}, {"input": 1, "output": 1, "outputs": 1}])
def test_a_bad_override_is_refused(values: dict[str, int]) -> None:
    """A missing, negative or misspelt price is an error that names the model."""
    with pytest.raises(ConfigError, match=r"overrides\.mine"):
        load_prices(PricesConfig.model_validate({"overrides": {"mine": values}}))
