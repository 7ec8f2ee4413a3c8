"""The status page: no script, nothing from elsewhere, every text escaped."""

from __future__ import annotations

from decimal import Decimal
from html import escape
from typing import Any

from potstill.serve.metrics import Metrics, RoleTotals

DAY_H = 24
COLUMNS = ("model", "requests", "prompt tokens", "answer tokens", "answer tokens an hour")


def page(metrics: Metrics, about: dict[str, Any], now: float) -> str:
    """The page at `now` (seconds since the epoch); `about` says what is served, and how busy it is."""
    hours = max(now - metrics.started, 1) / 3600
    rows = "".join(_row(name, metrics.models.get(name, RoleTotals()), hours) for name in about["models"])
    facts = {
        "student": about["student"],
        "state": about["state"],
        "up": _span(hours),
        "running": f"{about['running']:,} of at most {about['max_batch']:,}",
        "waiting": f"{about['waiting']:,} of at most {about['max_queue']:,}",
        **_savings(metrics),
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    heads = "".join(f"<th>{name}</th>" for name in COLUMNS)
    return PAGE.replace("{heads}", heads).replace("{rows}", rows).replace("{facts}", listed)


def _row(name: str, totals: RoleTotals, hours: float) -> str:
    """A line of the table; each figure carries its column's name, for screens too narrow for columns."""
    numbers = (totals.requests, totals.prompt_tokens, totals.completion_tokens, totals.completion_tokens / hours)
    cells = "".join(
        f'<td data-of="{column}">{number:,.0f}</td>' for column, number in zip(COLUMNS[1:], numbers, strict=True)
    )
    return f"<tr><td>{escape(name)}</td>{cells}</tr>"


def _savings(metrics: Metrics) -> dict[str, str]:
    answers = sum(metrics.routes.values())
    if not answers:
        return {}
    cached = metrics.routes.get("exact", 0) + metrics.routes.get("semantic", 0)
    routes = ", ".join(f"{count:,} {route}" for route, count in sorted(metrics.routes.items()))
    return {
        "hybrid": routes,
        "cache hits": f"{cached / answers:.0%}",
        "paid": f"{_dollars(metrics.spent_usd)}, the teacher alone {_dollars(metrics.baseline_usd)}",
        "saved": _dollars(metrics.baseline_usd - metrics.spent_usd),
    }


def _dollars(amount: Decimal) -> str:
    """Cents from a dollar on; below, a single answer's cost can be seen."""
    digits = 2 if abs(amount) >= 1 else 6
    return f"{'-' if amount < 0 else ''}${abs(amount):,.{digits}f}"


def _span(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < DAY_H else f"{hours / DAY_H:,.1f} days"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>potstill</title><meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin-top: 1.5rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .4rem; border-bottom: 1px solid #8884; }
td { white-space: nowrap; } th { vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
@media (max-width: 44rem) {
  thead { display: none; } table, tbody { display: block; } td, td:first-child { border: 0; padding: 0; }
  tr { display: grid; grid-template-columns: 1fr 1fr; gap: .2rem 1.5rem; padding: .6rem 0; border-top: 1px solid #8884; }
  td { text-align: left; } td:first-child { grid-column: 1 / -1; font-weight: 600; }
  td::before { content: attr(data-of); display: block; font-size: .8rem; opacity: .7; } td:first-child::before { content: none; }
}
</style></head><body><h1>potstill serve-local</h1><dl>{facts}</dl>
<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></body></html>
"""
