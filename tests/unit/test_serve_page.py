"""What the status page tells."""

from __future__ import annotations

from decimal import Decimal

from potstill.serve.metrics import Metrics
from potstill.serve.page import page

ABOUT = {
    "student": "<b>",
    "state": "ready",
    "models": ["expert", "hybrid"],
    "running": 1,
    "waiting": 0,
    "max_batch": 16,
    "max_queue": 1024,
}


def test_page_counts_and_owns_up_to_a_loss() -> None:
    """Tokens, routes and cache hits are summed; what cost more than the teacher alone has its minus before the dollar."""
    metrics = Metrics(lambda: 1, lambda: 0, lambda: 0)
    metrics.answered("expert", 1000, 2000)
    metrics.routed("merged", Decimal("0.000190"), Decimal("0.000144"))
    metrics.routed("exact", Decimal(0), Decimal(0))
    shown = page(metrics, ABOUT, metrics.started + 3600)
    assert "<dd>1 exact, 1 merged</dd>" in shown
    assert "50%" in shown
    assert "-$0.000046" in shown
    assert "&lt;b&gt;" in shown


def test_figures_of_a_busy_month_can_be_read() -> None:
    """Every figure carries its column's name for a narrow screen; millions have commas, and dollars from one on only cents."""
    metrics = Metrics(lambda: 1, lambda: 0, lambda: 0)
    metrics.answered("expert", 987_654_321, 1_234_567_890)
    metrics.routed("teacher", Decimal("12345.678901"), Decimal("98765.432109"))
    shown = page(metrics, ABOUT, metrics.started + 30 * 86400)
    assert '<td data-of="prompt tokens">987,654,321</td><td data-of="answer tokens">1,234,567,890</td>' in shown
    assert "<dd>$12,345.68, the teacher alone $98,765.43</dd>" in shown
    assert "<dd>30.0 days</dd>" in shown
    assert "<dd>0 of at most 1,024</dd>" in shown
