"""What is counted, for Prometheus and for the status page. Labels are known names only, so that nobody can add any."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from potstill.wording import counted

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass
class RoleTotals:
    """What one model answered since the start."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Metrics:
    """The counters of one server."""

    def __init__(
        self, running: Callable[[], float], waiting: Callable[[], float], prefix_hits: Callable[[], float]
    ) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self.started = time.time()
        self.models: dict[str, RoleTotals] = {}
        self.routes: dict[str, int] = {}
        self.spent_usd, self.baseline_usd = Decimal(0), Decimal(0)
        where: Any = {"registry": self.registry}
        self._requests = Counter("potstill_requests", "Requests by path and status.", ["path", "status"], **where)
        self._tokens = Counter("potstill_tokens", "Tokens by model and kind.", ["model", "kind"], **where)
        self._first = Histogram(
            "potstill_time_to_first_token_seconds", "From the request to its first text.", ["model"], buckets=SECONDS,
            **where,
        )  # fmt: skip
        self._whole = Histogram(
            "potstill_request_seconds", "From the request to its end.", ["path"], buckets=SECONDS, **where
        )
        self._batch = Histogram("potstill_batch_size", "Queries that shared a step.", buckets=BATCHES, **where)
        self._routes = Counter("potstill_hybrid", "Answers of hybrid by what gave them.", ["route"], **where)
        self._spent = Counter("potstill_spent_usd", "Dollars paid to the teacher by hybrid.", **where)
        self._baseline = Counter("potstill_baseline_usd", "Dollars that the teacher alone would have cost.", **where)
        Gauge("potstill_running", "Queries that have a place.", **where).set_function(running)
        Gauge("potstill_waiting", "Queries that wait for a place.", **where).set_function(waiting)
        self.registry.register(_PrefixHits(prefix_hits))

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(path, str(status)).inc()
        self._whole.labels(path).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """The first text of an answer has left."""
        self._first.labels(model).observe(seconds)

    def step(self, queries: int) -> None:
        """The engine has made a step."""
        if queries:
            self._batch.observe(queries)

    def answered(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """A model has answered."""
        self._tokens.labels(model, "prompt").inc(prompt_tokens)
        self._tokens.labels(model, "completion").inc(completion_tokens)
        totals = self.models.setdefault(model, RoleTotals())
        totals.requests += 1
        totals.prompt_tokens += prompt_tokens
        totals.completion_tokens += completion_tokens

    def routed(self, route: str, spent_usd: Decimal, baseline_usd: Decimal) -> None:
        """The router has answered."""
        self._routes.labels(route).inc()
        self._spent.inc(float(spent_usd))
        self._baseline.inc(float(baseline_usd))
        self.routes[route] = self.routes.get(route, 0) + 1
        self.spent_usd += spent_usd
        self.baseline_usd += baseline_usd

    def render(self) -> tuple[bytes, str]:
        """The text that Prometheus reads, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _PrefixHits:
    """A counter that the student keeps, read when Prometheus asks."""

    def __init__(self, hits: Callable[[], float]) -> None:
        self._hits = hits

    def collect(self) -> Iterator[Any]:
        """The one value."""
        from prometheus_client.metrics_core import CounterMetricFamily

        says = "Prompts whose role's system prompt was not read again."
        yield CounterMetricFamily("potstill_prefix_hits", says, value=self._hits())


def page(metrics: Metrics, about: dict[str, Any], now: float) -> str:
    """The status page: no script, nothing from elsewhere, every text escaped."""
    from html import escape

    hours = max(now - metrics.started, 1) / 3600
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{totals.requests:,}</td><td>{totals.prompt_tokens:,}</td>"
        f"<td>{totals.completion_tokens:,}</td><td>{totals.completion_tokens / hours:,.0f}</td></tr>"
        for name in about["models"]
        for totals in (metrics.models.get(name, RoleTotals()),)
    )
    facts = {
        "student": about["student"],
        "up": f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min",
        "running, waiting": f"{about['running']}, {about['waiting']} (at most {about['max_batch']}, {about['max_queue']})",
        **_savings(metrics),
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return PAGE.replace("{rows}", rows).replace("{facts}", listed)


def _savings(metrics: Metrics) -> dict[str, str]:
    answers = sum(metrics.routes.values())
    if not answers:
        return {}
    cached = metrics.routes.get("exact", 0) + metrics.routes.get("semantic", 0)
    routes = ", ".join(f"{count} {route}" for route, count in sorted(metrics.routes.items()))
    saved = metrics.baseline_usd - metrics.spent_usd
    return {
        "hybrid": f"{counted(answers, 'answer')}: {routes}",
        "cache hits": f"{cached / answers:.0%}",
        "paid": f"${metrics.spent_usd:.6f}, the teacher alone ${metrics.baseline_usd:.6f}",
        "saved": f"{'-' if saved < 0 else ''}${abs(saved):.6f}",
    }


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>potstill</title><meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; } div { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: 1.5rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .4rem; border-bottom: 1px solid #8884; }
td { white-space: nowrap; } th { vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
</style></head><body><h1>potstill serve-local</h1><dl>{facts}</dl>
<div><table><thead><tr><th>model</th><th>requests</th><th>prompt tokens</th><th>answer tokens</th><th>an hour</th></tr>
</thead><tbody>{rows}</tbody></table></div></body></html>
"""
