"""What is counted, for Prometheus and for the status page. Labels are known names only, so that nobody can add any."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

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
