"""What recorded questions would have cost under other rules. Pure: nothing is asked, nothing is paid.

A trace knows how near the nearest cached question was, how sure the student was, and, where Gemini answered all the same,
how much their answers agree with Gemini's. What a trace does not know is counted as a question to Gemini at its price.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from potstill.errors import InputError
from potstill.files import read_lines
from potstill.infer.bounds import LEVEL, lower_bound, upper_bound
from potstill.infer.decide import Mode
from potstill.records import Record, Trace, Usd, from_lines

COSINES = (0.85, 0.9, 0.95, 0.98, 1.01)
"""Thresholds that are tried; the last one stands for no semantic layer."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the student's answers, the surest first, that stand alone."""
AGREES = 0.5
"""Word F1 with Gemini's answer from which two answers count as saying the same."""


class Outcome(Record):
    """One rule over all traces. `disagreed` of `compared` answers said something else than Gemini did."""

    rule: str
    hits: int
    students: int
    gemini: int
    cost_usd: Usd
    share_of_all_gemini: float
    disagreed: int
    compared: int


class Escalated(Record):
    """The student's sure answers that Gemini saw at random: how many said something else, with a 95 % bound each way."""

    seen: int
    disagreed: int
    low: float
    high: float


def escalated(traces: Iterable[Trace]) -> Escalated:
    """What the random share tells about the answers that the student gave alone: the only unbiased look at them."""
    found = [trace.student_agreement for trace in traces if trace.escalated and trace.student_agreement is not None]
    disagreed = sum(value < AGREES for value in found)
    low, high = lower_bound(disagreed, len(found), LEVEL), upper_bound(disagreed, len(found), LEVEL)
    return Escalated(seen=len(found), disagreed=disagreed, low=low, high=high)


def read_traces(path: Path, home: Path) -> list[Trace]:
    """The traces of a file, or of all files in a folder; raises InputError that names file and line.

    `home` is where the workspace's own lie, for whoever gave another place.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found = [trace for file in files if file.is_file() for trace in from_lines(Trace, read_lines(file, "traces"), file)]
    if not found:
        message = f"no traces in {path}"
        there = f"those of this workspace lie in {home}"
        none = f"`potstill infer` writes one for each question, in {home}"
        raise InputError(message, hint=there if any(home.glob("*.jsonl")) else none)
    return found


@dataclass(frozen=True)
class Wanted:
    """A rule that somebody asks about: hits from this cosine on, student answers from this log-probability on.

    None: those that were served. Infinity: none, or with a minus every answer that the student gave.
    """

    cosine: float | None = None
    least_logprob: float | None = None


def wanted(threshold: float | None, decide: Mode | None, verdicts: float | None) -> Wanted | None:
    """What `cache.threshold` and `infer.decide` ask about, with the threshold of the student's verdict; None: nothing is set.

    Without a verdict `uncertain` lets no answer stand alone, as in the router.
    """
    if threshold is None and decide is None:
        return None
    uncertain = math.inf if verdicts is None else verdicts
    bounds = {None: None, "always": math.inf, "never": -math.inf, "uncertain": uncertain}
    return Wanted(threshold, bounds[decide])


def replay(traces: Sequence[Trace], asked: Wanted | None = None) -> list[Outcome]:
    """As it was, as it is asked about, then every cosine threshold with every share of student answers that stand alone.

    As it was, what is known of the student's sure answers is what Gemini said where it was asked at random.
    """
    baseline = total(traces)
    outcomes = [_as_it_was(traces, baseline)]
    if asked is not None:
        outcomes.append(_rule(traces, baseline, asked, _said(asked)))
    sure = sorted((trace.mean_logprob for trace in traces if trace.mean_logprob is not None), reverse=True)
    bounds = {share: _bound(sure, share) for share in (SHARES if sure else SHARES[:1])}
    for cosine in COSINES:
        layer = f"cosine >= {cosine:g}" if cosine <= 1 else "exact hits only"
        for share, bound in bounds.items():
            decide = f"student where log-probability >= {bound:.2f} ({share:.0%})" if share else "Gemini alone"
            outcomes.append(_rule(traces, baseline, Wanted(cosine, bound), f"{layer}, then {decide}"))
    return outcomes


def total(traces: Iterable[Trace]) -> Decimal:
    """What Gemini alone would have cost for all of them."""
    return sum((trace.baseline_usd for trace in traces), Decimal(0))


def _bound(sure: Sequence[float], share: float) -> float:
    count = int(share * len(sure))
    return sure[count - 1] if count else float("inf")


def _rule(traces: Sequence[Trace], baseline: Decimal, asked: Wanted, name: str) -> Outcome:
    hits = students = 0
    cost = Decimal(0)
    agreements: list[float] = []
    for trace in traces:
        if _hits(trace, asked.cosine):
            hits += 1
            agreements += [trace.nearest_agreement] if trace.nearest_agreement is not None else []
        elif _stands_alone(trace, asked.least_logprob):
            students += 1
            agreements += [trace.student_agreement] if trace.student_agreement is not None else []
        else:
            cost += trace.baseline_usd
    return _outcome(name, (hits, students, len(traces) - hits - students), cost, baseline, agreements)


def _hits(trace: Trace, cosine: float | None) -> bool:
    if cosine is None or trace.route == "exact":
        return trace.route in ("exact", "semantic")
    near = trace.cosine if trace.route == "semantic" else trace.nearest_cosine
    return near is not None and near >= cosine


def _stands_alone(trace: Trace, least_logprob: float | None) -> bool:
    if least_logprob is None:
        return trace.route == "student"
    return trace.mean_logprob is not None and trace.mean_logprob >= least_logprob


def _said(asked: Wanted) -> str:
    """A rule that is asked about, in words."""
    layer = "hits as served" if asked.cosine is None else f"cosine >= {asked.cosine:g}"
    match asked.least_logprob:
        case None:
            decide = "student as served"
        case math.inf:
            decide = "Gemini alone"
        case bound if bound == -math.inf:
            decide = "student wherever it answered"
        case bound:
            decide = f"student where log-probability >= {bound:.2f}"
    return f"as asked: {layer}, then {decide}"


def _as_it_was(traces: Sequence[Trace], baseline: Decimal) -> Outcome:
    hits = sum(trace.route in ("exact", "semantic") for trace in traces)
    students = sum(trace.route == "student" for trace in traces)
    cost = sum((trace.cost_usd for trace in traces), Decimal(0))
    looked_at = [item.student_agreement for item in traces if item.escalated and item.student_agreement is not None]
    return _outcome("as it was", (hits, students, len(traces) - hits - students), cost, baseline, looked_at)


def _outcome(
    rule: str, counts: tuple[int, int, int], cost: Decimal, baseline: Decimal, agreements: Sequence[float]
) -> Outcome:
    return Outcome(
        rule=rule,
        hits=counts[0],
        students=counts[1],
        gemini=counts[2],
        cost_usd=cost,
        share_of_all_gemini=float(cost / baseline) if baseline else 0.0,
        disagreed=sum(value < AGREES for value in agreements),
        compared=len(agreements),
    )
