"""What the status page tells."""

from __future__ import annotations

from decimal import Decimal

from potstill.serve.metrics import Metrics, page

ABOUT = {"student": "<b>", "models": ["expert", "hybrid"], "running": 1, "waiting": 0, "max_batch": 16, "max_queue": 64}


def test_page_counts_and_owns_up_to_a_loss() -> None:
    """Tokens, routes and cache hits are summed; what cost more than the teacher alone has its minus before the dollar."""
    metrics = Metrics(lambda: 1, lambda: 0, lambda: 0)
    metrics.answered("expert", 1000, 2000)
    metrics.routed("merged", Decimal("0.000190"), Decimal("0.000144"))
    metrics.routed("exact", Decimal(0), Decimal(0))
    shown = page(metrics, ABOUT, metrics.started + 3600)
    assert "<tr><td>expert</td><td>1</td><td>1,000</td><td>2,000</td><td>2,000</td></tr>" in shown
    assert "2 answers: 1 exact, 1 merged" in shown
    assert "50%" in shown
    assert "-$0.000046" in shown
    assert "&lt;b&gt;" in shown
