"""`potstill cost`: know before you spend, and see what was saved."""

from __future__ import annotations

from potstill.cli.cost.app import cost_app

__all__ = ["cost_app"]
