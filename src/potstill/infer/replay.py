"""What recorded questions would have cost under other rules. Pure: nothing is asked, nothing is paid.

A trace knows how near the nearest cached question was, how sure the student was, and, where Gemini answered all the same,
how much their answers agree with Gemini's. What a trace does not know is counted as a question to Gemini at its price.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

from potstill.errors import InputError
from potstill.files import read_lines
from potstill.infer.calibration import LEVEL, lower_bound, upper_bound
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


def read_traces(path: Path) -> list[Trace]:
    """The traces of a file, or of all files in a folder; raises InputError that names file and line."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found = [trace for file in files for trace in from_lines(Trace, read_lines(file, "traces"), file)]
    if not found:
        message = f"no traces in {path}"
        raise InputError(message, hint="`potstill infer` writes one for each question, in <workspace>/traces")
    return found


def replay(traces: Sequence[Trace]) -> list[Outcome]:
    """As it was, then every cosine threshold with every share of student answers that stand alone.

    As it was, what is known of the student's sure answers is what Gemini said where it was asked at random.
    """
    baseline = total(traces)
    outcomes = [_as_it_was(traces, baseline)]
    sure = sorted((trace.mean_logprob for trace in traces if trace.mean_logprob is not None), reverse=True)
    bounds = {share: _bound(sure, share) for share in (SHARES if sure else SHARES[:1])}
    for cosine in COSINES:
        outcomes += [_rule(traces, baseline, cosine, share, bound) for share, bound in bounds.items()]
    return outcomes


def total(traces: Iterable[Trace]) -> Decimal:
    """What Gemini alone would have cost for all of them."""
    return sum((trace.baseline_usd for trace in traces), Decimal(0))


def _bound(sure: Sequence[float], share: float) -> float:
    count = int(share * len(sure))
    return sure[count - 1] if count else float("inf")


def _rule(traces: Sequence[Trace], baseline: Decimal, cosine: float, share: float, bound: float) -> Outcome:
    hits = students = 0
    cost = Decimal(0)
    agreements: list[float] = []
    for trace in traces:
        near = trace.cosine if trace.route == "semantic" else trace.nearest_cosine
        if trace.route == "exact" or (near is not None and near >= cosine):
            hits += 1
            agreements += [trace.nearest_agreement] if trace.nearest_agreement is not None else []
        elif trace.mean_logprob is not None and trace.mean_logprob >= bound:
            students += 1
            agreements += [trace.student_agreement] if trace.student_agreement is not None else []
        else:
            cost += trace.baseline_usd
    layer = f"cosine >= {cosine:g}" if cosine <= 1 else "exact hits only"
    decide = f"student where log-probability >= {bound:.2f} ({share:.0%})" if share else "Gemini alone"
    return _outcome(
        f"{layer}, then {decide}", (hits, students, len(traces) - hits - students), cost, baseline, agreements
    )


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
