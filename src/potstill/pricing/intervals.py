"""How sure an estimate is: a 90 % interval for the total of answers still to come, from the answers that there are. Pure.

The bootstrap-t (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 12.5), widened by the spread of
the answers to come: their total has a variance of its own. On few and skewed numbers it covers what it promises where
the percentile bootstrap is too narrow and a lognormal is wrong about the tail (benchmarks/results/cost_interval.md).
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ENOUGH = 10
"""Answers from which on an interval is given; fewer say too little."""

PLENTY = 2000
"""Answers from which on the mean is normal, and nothing need be drawn."""

Z90 = 1.6449
"""Normal quantile of a two-sided 90 % interval."""

TAIL = 0.05
DRAWS = 400_000
"""Values drawn in all, so that a long history costs no more than a short one."""
LEAST_RESAMPLES, MOST_RESAMPLES = 199, 1999


@dataclass(frozen=True)
class Interval:
    """An expected total with its 90 % interval, how many answers it stands on, and by which method."""

    expected: float
    low: float
    high: float
    known: int
    method: str


def total_interval(
    values: Sequence[float], count: int, *, ceiling: float | None = None, seed: int = 0
) -> Interval | None:
    """The total of `count` further values like `values` (at least 0); None for fewer than `ENOUGH` of them.

    `ceiling` is the most that one value can be; the upper end is held to it. The same seed gives the same interval.
    """
    known = len(values)
    if known < ENOUGH:
        return None
    mean = statistics.fmean(values)
    error = statistics.stdev(values) * math.sqrt(1 / known + 1 / max(1, count))
    if known < PLENTY:
        quantiles, method = _studentised(values, seed), "bootstrap-t"
    else:
        quantiles, method = (-Z90, Z90), "normal"
    top = math.inf if ceiling is None else max(mean, ceiling)
    low = min(mean, max(0.0, mean - quantiles[1] * error))
    high = max(mean, min(top, mean - quantiles[0] * error))
    return Interval(mean * count, low * count, high * count, known, method)


def combined(parts: Sequence[Interval]) -> Interval:
    """The total of independent parts: half-widths add in quadrature, each side on its own."""
    expected = math.fsum(part.expected for part in parts)
    below = math.sqrt(math.fsum((part.expected - part.low) ** 2 for part in parts))
    above = math.sqrt(math.fsum((part.high - part.expected) ** 2 for part in parts))
    methods = ", ".join(sorted({part.method for part in parts}))
    return Interval(expected, max(0.0, expected - below), expected + above, sum(part.known for part in parts), methods)


def _studentised(values: Sequence[float], seed: int) -> tuple[float, float]:
    """Both quantiles of the mean's studentised deviation, drawn instead of taken to be normal."""
    known, mean = len(values), statistics.fmean(values)
    draw = random.Random(seed)  # noqa: S311  (statistics)
    ratios = []
    for _ in range(max(LEAST_RESAMPLES, min(MOST_RESAMPLES, DRAWS // known))):
        sample = draw.choices(values, k=known)
        centre = math.fsum(sample) / known
        error = math.sqrt(max(0.0, math.fsum(value * value for value in sample) / known - centre * centre) / known)
        if error > 0:
            ratios.append((centre - mean) / error)
    if not ratios:
        return 0.0, 0.0
    ratios.sort()
    return ratios[int(TAIL * (len(ratios) - 1))], ratios[int((1 - TAIL) * (len(ratios) - 1))]
