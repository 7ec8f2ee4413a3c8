"""The commands under `potstill cost`, gathered."""

from __future__ import annotations

import typer

from potstill.cli.cost.call import call
from potstill.cli.cost.compare import compare
from potstill.cli.cost.diff import diff
from potstill.cli.cost.estimate import estimate
from potstill.cli.cost.forecast import forecast
from potstill.cli.cost.prices import prices
from potstill.cli.cost.report import report

cost_app = typer.Typer(
    help="Know before you spend, and see what was saved.", no_args_is_help=True, rich_markup_mode=None
)
for command in (call, estimate, report, compare, forecast, diff, prices):
    cost_app.command(name=command.__name__)(command)
