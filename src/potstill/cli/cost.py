"""`potstill cost`: call, estimate, report, compare, prices."""

from __future__ import annotations

import typer

cost_app = typer.Typer(
    help="Know before you spend, and see what was saved.", no_args_is_help=True, rich_markup_mode=None
)
