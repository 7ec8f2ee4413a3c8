"""How long the answers will be: from the ledger's history, a pilot, or a stated assumption; and how long inputs really are.

Answers are told apart by role where each role has enough of them, for a terse and a talkative role differ by more than
chance. Output tokens include thinking.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from potstill.files import read_text
from potstill.ledger import PaidWork, paid_work
from potstill.pricing.counting import Counter
from potstill.pricing.intervals import ENOUGH, PLENTY, Z90, Interval, combined, total_interval
from potstill.records import Sample, from_json

ASSUMED_SHARE = 0.5
"""Share of `max_output_tokens` that an answer is taken to use while nothing is known."""


@dataclass(frozen=True)
class History:
    """Output tokens of earlier answers by role, (counted, billed) inputs of some of them, and where they are from."""

    by_role: Mapping[str, tuple[int, ...]]
    billed: tuple[tuple[int, int], ...]
    origin: str

    @property
    def lengths(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(tokens for values in self.by_role.values() for tokens in values)


@dataclass(frozen=True)
class Outputs:
    """Output tokens in all, with a 90 % interval where there is history; the mean by role; and what they stand on."""

    expected: float
    low: float | None
    high: float | None
    mean_by_role: Mapping[str, float]
    basis: str


@dataclass(frozen=True)
class Scale:
    """Billed input tokens for each counted one, and by which share that may be off on each side."""

    factor: float
    below: float
    above: float
    basis: str


def ledger_history(paid: PaidWork, model: str, command: str) -> History:
    """What the ledger holds of a command's answers by this model; the newest where there are very many."""
    by_role: defaultdict[str, list[int]] = defaultdict(list)
    for answer in paid.lengths(model, command, PLENTY):
        by_role[answer.role].append(answer.output_tokens)
    return History({role: tuple(values) for role, values in by_role.items()}, (), "the ledger")


def pilot_history(path: Path, model: str, counter: Counter) -> History:
    """A pilot: a dataset file (JSON Lines) or another workspace's ledger; raises InputError naming file and line."""
    if path.suffix == ".sqlite3":
        with paid_work(path) as paid:
            return replace(ledger_history(paid, model, "generate"), origin=f"pilot {path}")
    by_role: defaultdict[str, list[int]] = defaultdict(list)
    billed = []
    for sample in _samples(path):
        by_role[sample.role].append(sample.usage.output_tokens + sample.usage.thinking_tokens)
        counted = sum(counter.count(message.content) for message in sample.messages[:-1])
        billed.append((counted, sample.usage.input_tokens))
    return History({role: tuple(values) for role, values in by_role.items()}, tuple(billed), f"pilot {path}")


def expect_outputs(history: History, todo: Mapping[str, int], most: int, stated: int | None) -> Outputs:
    """The output of `todo` answers by role; `most` bounds one of them, `stated` is the user's own figure."""
    count = sum(todo.values())
    if stated is not None:
        return _assumed(todo, float(stated), f"{stated} tokens an answer, as you state")
    if len(history.lengths) < ENOUGH:
        mean = most * ASSUMED_SHARE
        why = f"fewer than {ENOUGH} answers in {history.origin}"
        return _assumed(
            todo, mean, f"assumption: {ASSUMED_SHARE:.0%} of the limit, {mean:.0f} tokens an answer ({why})"
        )
    parts = {role: _interval(history, role, number, most) for role, number in todo.items()}
    means = {role: part.expected / todo[role] if todo[role] else 0.0 for role, part in parts.items()}
    whole = combined(list(parts.values())) if parts else Interval(0.0, 0.0, 0.0, len(history.lengths), "-")
    high = min(whole.high, max(whole.expected, float(most) * count))
    basis = f"{len(history.lengths)} answers in {history.origin}; 90 % interval by {whole.method}"
    return Outputs(whole.expected, whole.low, high, means, basis)


def input_scale(pairs: Sequence[tuple[int, int]], counter: Counter) -> Scale:
    """How billed inputs compare with counted ones: measured on enough of them, else the counter's stated error."""
    known = [(counted, billed) for counted, billed in pairs if counted and billed]
    if len(known) < ENOUGH:
        return Scale(1.0, counter.low, counter.high, f"counted by {counter.basis}")
    factor = sum(billed for _, billed in known) / sum(counted for counted, _ in known)
    ratios = [billed / counted for counted, billed in known]
    error = Z90 * statistics.stdev(ratios) / len(ratios) ** 0.5 / factor
    basis = f"counted by {counter.basis}; times {factor:.3f} by {len(known)} billed inputs (+-{error:.1%})"
    return Scale(factor, error, error, basis)


def _interval(history: History, role: str, count: int, most: int) -> Interval:
    """The total of one role's answers: from its own where there are enough, else from everyone's."""
    own = history.by_role.get(role, ())
    found = total_interval(own if len(own) >= ENOUGH else history.lengths, count, ceiling=most)
    assert found is not None
    return found


def _assumed(todo: Mapping[str, int], mean: float, basis: str) -> Outputs:
    return Outputs(mean * sum(todo.values()), None, None, dict.fromkeys(todo, mean), basis)


def _samples(path: Path) -> Iterator[Sample]:
    for number, line in enumerate(read_text(path, "pilot").split("\n"), start=1):
        if line.strip():
            yield from_json(Sample, line, f"{path}:{number}", hint="a pilot is a dataset file, or a ledger.sqlite3")
