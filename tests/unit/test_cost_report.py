"""The report's sums, and the ledger against a billing log."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import PricesConfig
from potstill.cost.reconcile import Billed, read_log, reconcile
from potstill.cost.report import summed
from potstill.errors import InputError
from potstill.ledger import Sum
from potstill.pricing.book import load_prices
from potstill.records import Attempt, Trace, Usage

BOOK = load_prices(PricesConfig())
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
MODEL = "gemini-3.5-flash-lite"


def attempt(usage: Usage, status: str = "done", held: str = "0", role: str = "a") -> Attempt:
    """An attempt at the book's price."""
    usd = Decimal(0) if status == "open" else BOOK.cost(usage, MODEL, "standard", NOON.date()).usd
    return Attempt(
        id=1,
        key="k",
        command="generate",
        role=role,
        model=MODEL,
        service="standard",
        status=status,  # type: ignore[arg-type]
        reason=None,
        reserved_usd=Decimal(held),
        cost_usd=usd,
        price_id="p",
        usage=Usage() if status == "open" else usage,
        started_at=NOON,
        finished_at=None,
    )


def group(found: Attempt) -> Sum:
    """The attempt as a group of one."""
    return Sum(
        day=found.started_at.date(),
        command=found.command,
        role=found.role,
        model=found.model,
        service=found.service,
        status=found.status,
        count=1,
        usage=found.usage,
        cost_usd=found.cost_usd,
        reserved_usd=found.reserved_usd,
    )


def billed(usage: Usage) -> Billed:
    """The same on the other side."""
    return Billed(at=NOON, model=MODEL, billed=usage)


USAGES = st.lists(st.builds(Usage, input_tokens=st.integers(1, 5000), output_tokens=st.integers(0, 5000)), max_size=20)


@given(USAGES, st.lists(st.sampled_from(["done", "failed", "open"]), min_size=20, max_size=20))
def test_every_grouping_adds_up_to_the_whole(usages: list[Usage], states: list[str]) -> None:
    """By day, command, role, model or service: the same attempts and the same cents, none twice and none missing."""
    roles = ("a", "b", "c")
    attempts = [
        attempt(usage, state, "0.01", roles[number % 3])
        for number, (usage, state) in enumerate(zip(usages, states, strict=False))
    ]
    found = summed([group(item) for item in attempts], [])
    for lines in found.groups.values():
        assert sum(line.usd for line in lines.values()) == found.total.usd
        assert sum(line.possibly_usd for line in lines.values()) == found.total.possibly_usd
        assert sum(line.answers + line.failed + line.open for line in lines.values()) == len(attempts)
    assert found.total.failed_usd <= found.total.usd


def test_savings_by_route_are_negative_where_the_router_was_dearer() -> None:
    """A merged answer that cost more than a plain call shows as a loss, beside what the cache saved."""

    def trace(route: str, cost: str) -> Trace:
        return Trace(
            id="t",
            at=NOON,
            query="q",
            namespace="n",
            route=route,  # type: ignore[arg-type]
            reason="r",
            cosine=None,
            mean_logprob=None,
            roles=(),
            model=None,
            entry_id=None,
            cost_usd=Decimal(cost),
            baseline_usd=Decimal("0.005"),
            latency_s=0.1,
        )

    saved = summed([], [trace("exact", "0"), trace("merged", "0.009")]).saved
    assert saved.by_route == {"exact": Decimal("0.005"), "merged": Decimal("-0.004")}
    assert saved.saved_usd == Decimal("0.001")


@given(USAGES, USAGES)
def test_answers_and_lost_replies_explain_the_bill(known: list[Usage], lost: list[Usage]) -> None:
    """Whatever was billed is in the ledger or held for an open attempt: to the last digit."""
    attempts = [*(attempt(usage) for usage in known), *(attempt(usage, "open", "1") for usage in lost)]
    found = reconcile(attempts, [billed(usage) for usage in (*known, *lost)], BOOK)
    assert found.agrees
    assert found.unexplained_usd == 0
    assert found.lost == len(lost)
    assert found.log_usd == found.ledger_usd + found.lost_usd


def test_what_does_not_fit_is_found() -> None:
    """A bill without an attempt, an attempt without a bill, another price, and too little held: each is told."""
    usage, other = Usage(input_tokens=500, output_tokens=2000), Usage(input_tokens=1, output_tokens=1)
    assert reconcile([], [billed(usage)], BOOK).unknown == 1
    assert reconcile([attempt(usage)], [], BOOK).unbilled == 1
    dear = attempt(usage).model_copy(update={"cost_usd": Decimal(1)})
    assert reconcile([dear], [billed(usage)], BOOK).unexplained_usd == Decimal("0.00515") - 1
    thin = reconcile([attempt(usage, "open", "0.001")], [billed(usage)], BOOK)
    assert not thin.agrees
    for found in (
        reconcile([], [billed(usage)], BOOK),
        reconcile([attempt(usage)], [], BOOK),
        reconcile([attempt(usage)], [billed(other)], BOOK),
    ):
        assert not found.agrees


def test_a_bad_log_names_its_line(tmp_path: Path) -> None:
    """A line that is no entry is an error with file and line; requests that billed nothing are passed over."""
    path = tmp_path / "log.jsonl"
    free = billed(Usage()).model_dump_json()
    path.write_text(f"{free}\n{billed(Usage(input_tokens=3)).model_dump_json()}\n")
    assert len(list(read_log(path))) == 1
    path.write_text(f"{free}\noops\n")
    with pytest.raises(InputError, match=r"log\.jsonl:2"):
        list(read_log(path))
