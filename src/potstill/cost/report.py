"""What was spent, from the ledger, and what cache and student saved, from the traces; and what was lost, settled by the bill."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date
from decimal import Decimal
from pathlib import Path

from potstill.errors import InputError
from potstill.files import read_lines
from potstill.ledger import Ledger, Settled, Sum, read_sums
from potstill.records import Attempt, Trace, Usage, from_lines
from potstill.workspace import Workspace

GROUPS: dict[str, Callable[[Sum], str]] = {
    "day": lambda found: found.day.isoformat(),
    "command": lambda found: found.command.partition(" ")[0],  # `distill NAME` is distill's part for one student
    "role": lambda found: found.role or "-",
    "model": lambda found: found.model,
    "service": lambda found: found.service,
}


@dataclass(frozen=True)
class Line:
    """The attempts of one group: answers, failures, attempts without a reply, tokens and dollars.

    `usd` was billed, `failed_usd` of it for attempts that gave no answer; `possibly_usd` is held at most for the open
    ones, which left and will have no reply, `under_way_usd` for those that a process or a batch job will answer. `by_bill`:
    failed ones without a reply that were closed by the teacher's bill, at `by_bill_usd`.
    """

    answers: int
    failed: int
    open: int
    usage: Usage
    usd: Decimal
    failed_usd: Decimal
    possibly_usd: Decimal
    under_way: int
    under_way_usd: Decimal
    by_bill: int
    by_bill_usd: Decimal

    @property
    def usd_per_answer(self) -> Decimal | None:
        """Everything that was billed, over the answers that it brought."""
        return self.usd / self.answers if self.answers else None


@dataclass(frozen=True)
class Savings:
    """What queries cost, and what Gemini alone would have cost for them."""

    routes: dict[str, int]
    usd: Decimal
    baseline_usd: Decimal
    by_route: dict[str, Decimal]
    assumption: str = (
        "baseline: one plain teacher call a query, at the usage of the call that was made, else the ledger's mean; "
        "the student's machine is not counted"
    )

    @property
    def saved_usd(self) -> Decimal:
        """Dollars that were not spent; negative where the router was dearer than Gemini alone."""
        return self.baseline_usd - self.usd


@dataclass(frozen=True)
class Report:
    """Everything that was spent, by group, and what was saved."""

    total: Line
    groups: dict[str, dict[str, Line]]
    saved: Savings


def report(
    workspace: Workspace, *, since: date | None = None, until: date | None = None, command: str | None = None
) -> Report:
    """Read and sum up a workspace, days in UTC and both included; an empty one has nothing in it. Raises InputError."""
    sums = [
        found
        for found in read_sums(workspace.ledger)
        if _within(found.day, since, until) and command in {None, GROUPS["command"](found)}
    ]
    traces = (trace for trace in read_traces(workspace.traces) if _within(trace.at.date(), since, until))
    return summed(sums, traces)


async def settle(
    workspace: Workspace,
    billed_usd: Decimal,
    *,
    since: date | None = None,
    until: date | None = None,
    command: str | None = None,
) -> Settled:
    """Close what is possibly paid of some days and a command, at what the teacher's bill says of it together.

    Raises InputError where there is no ledger, UsageError where more was billed than is held.
    """
    if not workspace.ledger.is_file():
        message = f"no ledger at {workspace.ledger}: there is nothing to settle"
        raise InputError(message)

    def chosen(attempt: Attempt) -> bool:
        named = command in {None, attempt.command.partition(" ")[0]}
        return named and _within(attempt.started_at.astimezone(UTC).date(), since, until)

    with Ledger.open(workspace.ledger) as ledger:
        return await ledger.settle_lost(billed_usd, chosen)


def summed(sums: Sequence[Sum], traces: Iterable[Trace]) -> Report:
    """Sum up a workspace. Failed attempts count with what was billed, open ones apart with what is held for them."""
    groups: dict[str, dict[str, Line]] = {}
    for name, key in GROUPS.items():
        members: defaultdict[str, list[Sum]] = defaultdict(list)
        for found in sums:
            members[key(found)].append(found)
        groups[name] = {value: line(members[value]) for value in sorted(members)}
    return Report(line(sums), groups, savings(traces))


def savings(traces: Iterable[Trace]) -> Savings:
    """Cost and baseline of the queries that were answered, and what each way of answering saved."""
    routes: Counter[str] = Counter()
    by_route: defaultdict[str, Decimal] = defaultdict(Decimal)
    cost = baseline = Decimal(0)
    for trace in traces:
        routes[trace.route] += 1
        by_route[trace.route] += trace.baseline_usd - trace.cost_usd
        cost += trace.cost_usd
        baseline += trace.baseline_usd
    return Savings(dict(sorted(routes.items())), cost, baseline, dict(sorted(by_route.items())))


def read_traces(folder: Path) -> Iterator[Trace]:
    """All traces of a workspace, none where there is no folder; raises InputError naming file and line."""
    for path in sorted(folder.glob("*.jsonl")):
        yield from from_lines(Trace, read_lines(path, "trace file"), path)


def line(sums: Sequence[Sum]) -> Line:
    """Sum up some groups of attempts."""
    states: Counter[str] = Counter()
    for found in sums:
        states["under way" if found.under_way else found.status] += found.count
    billed = [found for found in sums if found.status != "open"]
    return Line(
        states["done"],
        states["failed"],
        states["open"],
        sum((found.usage for found in billed), Usage()),
        sum((found.cost_usd for found in billed), Decimal(0)),
        sum((found.cost_usd for found in billed if found.status == "failed"), Decimal(0)),
        sum((found.reserved_usd for found in sums if found.status == "open" and not found.under_way), Decimal(0)),
        states["under way"],
        sum((found.reserved_usd for found in sums if found.under_way), Decimal(0)),
        sum(found.count for found in sums if found.by_bill),
        sum((found.cost_usd for found in sums if found.by_bill), Decimal(0)),
    )


def _within(day: date, since: date | None, until: date | None) -> bool:
    return (since is None or since <= day) and (until is None or day <= until)
