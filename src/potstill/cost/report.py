"""What was spent, from the ledger, and what cache and student saved, from the traces. Reads only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from pydantic import ValidationError

from potstill.errors import InputError
from potstill.ledger import read_attempts
from potstill.records import Attempt, Trace, Usage
from potstill.workspace import Workspace, read_text

GROUPS: dict[str, Callable[[Attempt], str]] = {
    "day": lambda attempt: attempt.started_at.date().isoformat(),
    "command": lambda attempt: attempt.command,
    "role": lambda attempt: attempt.role or "-",
    "model": lambda attempt: attempt.model,
    "service": lambda attempt: attempt.service,
}


@dataclass(frozen=True)
class Line:
    """The attempts of one group: answers, failures, attempts without a reply, tokens and dollars."""

    answers: int
    failed: int
    open: int
    usage: Usage
    usd: Decimal
    possibly_usd: Decimal


@dataclass(frozen=True)
class Savings:
    """What queries cost, and what Gemini alone would have cost for them."""

    routes: dict[str, int]
    usd: Decimal
    baseline_usd: Decimal
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


def report(workspace: Workspace) -> Report:
    """Read and sum up a workspace; one without ledger and traces has nothing in it. Raises InputError."""
    return summed(read_attempts(workspace.ledger), read_traces(workspace.traces))


def summed(attempts: Sequence[Attempt], traces: Iterable[Trace]) -> Report:
    """Sum up a workspace. Failed attempts count with what was billed, open ones apart with what is held for them."""
    groups: dict[str, dict[str, Line]] = {}
    for name, key in GROUPS.items():
        members: defaultdict[str, list[Attempt]] = defaultdict(list)
        for attempt in attempts:
            members[key(attempt)].append(attempt)
        groups[name] = {value: _line(members[value]) for value in sorted(members)}
    return Report(_line(attempts), groups, savings(traces))


def savings(traces: Iterable[Trace]) -> Savings:
    """Cost and baseline of the queries that were answered."""
    routes: Counter[str] = Counter()
    cost = baseline = Decimal(0)
    for trace in traces:
        routes[trace.route] += 1
        cost += trace.cost_usd
        baseline += trace.baseline_usd
    return Savings(dict(sorted(routes.items())), cost, baseline)


def read_traces(folder: Path) -> Iterator[Trace]:
    """All traces of a workspace, none where there is no folder; raises InputError naming file and line."""
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(read_text(path, "trace file").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                yield Trace.model_validate_json(line)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                message = f"{path}:{number}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
                raise InputError(message) from error


def _line(attempts: Sequence[Attempt]) -> Line:
    states = Counter(attempt.status for attempt in attempts)
    billed = [attempt for attempt in attempts if attempt.status != "open"]
    return Line(
        states["done"],
        states["failed"],
        states["open"],
        sum((attempt.usage for attempt in billed), Usage()),
        sum((attempt.cost_usd for attempt in billed), Decimal(0)),
        sum((attempt.reserved_usd for attempt in attempts if attempt.status == "open"), Decimal(0)),
    )
