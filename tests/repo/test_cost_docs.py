"""The figures of docs/cost-formulas.md and docs/cost.md, computed anew; its YAML examples, read by what reads them."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from potstill.config import PricesConfig
from potstill.cost.projection import Budgets
from potstill.cost.scenarios import ScenarioFile
from potstill.pricing.book import load_prices
from potstill.records import Usage

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| (gemini-\S+) \| (\w+) \| (\d{4}-\d\d-\d\d) \| \$([0-9.]+) \|$", re.MULTILINE)
ROWS = ROW.findall((DOCS / "cost-formulas.md").read_text(encoding="utf-8"))


def yaml_block(start: str) -> str:
    """The YAML example of docs/cost.md that has this text in it."""
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "cost.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    return next(block for block in blocks if start in block)


@pytest.mark.parametrize(("model", "service", "on", "usd"), ROWS)
def test_the_price_table_is_right(model: str, service: str, on: str, usd: str) -> None:
    """Each row of the table is what the book says for 500 + 2,000 tokens on that day."""
    usage = Usage(input_tokens=500, output_tokens=2000)
    book = load_prices(PricesConfig())
    assert book.cost(usage, model, service, date.fromisoformat(on)).usd == Decimal(usd)


def test_there_is_a_table() -> None:
    """The pattern above finds rows, so the test above is about something."""
    assert len(ROWS) > 10


def test_the_yaml_examples_are_valid(tmp_path: Path) -> None:
    """Scenario file, budget file, price file and workflow of the page are accepted by their own readers."""
    scenarios = ScenarioFile.model_validate(yaml.safe_load(yaml_block("scenarios:")))
    assert len(scenarios.scenarios) == 5
    assert len(Budgets.model_validate(yaml.safe_load(yaml_block("total_monthly_usd"))).projects) == 2
    path = tmp_path / "prices.yaml"
    path.write_text(yaml_block("extends: current"), encoding="utf-8")
    book = load_prices(PricesConfig(file=str(path)))
    call = Usage(input_tokens=500, output_tokens=2000)
    assert book.cost(call, "gemini-3.5-flash-lite", "standard", date(2026, 11, 24)).usd == Decimal("0.00412")
    steps = yaml.safe_load(yaml_block("jobs:"))["jobs"]["cost"]["steps"]
    assert any("cost diff" in str(step.get("run", "")) for step in steps)
