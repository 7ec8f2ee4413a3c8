"""The verdict's statistics: intervals by resampling prompts, and bounds of shares. Pure."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from potstill.records import Ceiling

RESAMPLES = 2000
LEVEL = 0.05


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    """Mean with a percentile bootstrap interval (Efron 1979, doi 10.1214/aos/1176344552), seeded.

    `clusters` names what each value belongs to, such as its prompt: whole clusters are drawn, because the answers to
    one question are no independent evidence (Field and Welsh 2007, doi 10.1111/j.1467-9868.2007.00593.x).
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster][0] += value
        sums[cluster][1] += 1
    groups = list(sums.values())
    draw = random.Random(0)  # noqa: S311  (statistics)
    means = []
    for _ in range(RESAMPLES):
        drawn = draw.choices(groups, k=len(groups))
        means.append(sum(group[0] for group in drawn) / sum(group[1] for group in drawn))
    means.sort()
    return Interval(sum(values) / len(values), means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)])


def score_interval(scores: Sequence[float], clusters: Sequence[str]) -> Interval:
    """`interval` of scores in 0..1, no surer than so many clusters allow.

    Resampling sees no spread in equal scores: three perfect answers would prove perfection. Were all clusters perfect
    (or worthless), the truth could still lie at Wilson's bound for so many, and no end of the interval passes that.
    """
    found = interval(scores, clusters)
    number = len(set(clusters))
    surest = wilson_low(number, number, 0.025)
    return Interval(found.mean, min(found.low, surest), max(found.high, 1 - surest))


def wilson_low(good: int, total: int, level: float) -> float:
    """Lower bound of a share at a one-sided level (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    z = NormalDist().inv_cdf(1 - level)
    share = good / total
    centre = share + z * z / (2 * total)
    spread = z * ((share * (1 - share) + z * z / (4 * total)) / total) ** 0.5
    return max(0.0, float((centre - spread) / (1 + z * z / total)))


def enough(prompts: int, margin: float) -> bool:
    """Whether so many prompts show at least one of the failures, were a share `margin` of all (at least 5 %) to fail, in 95 %.

    Answers that are all alike, such as ties, have a bootstrap interval of no width: this bounds what was not seen
    (Hanley and Lippman-Hand 1983, doi 10.1001/jama.1983.03330370053031).
    """
    return (1 - max(margin, LEVEL)) ** prompts <= LEVEL


def low_less(score: float, low: float, bar: Ceiling) -> float:
    """`score` less what the sampling error of both sides together may take off, where it is compared with `bar`.

    Squares of the two distances are added (MOVER: Zou and Donner 2008, doi 10.1002/sim.3095): the ceiling is an estimate as
    well, often from fewer prompts. The two are taken as independent; where they share prompts that is too strict.
    """
    return float(score - ((score - low) ** 2 + (bar.high - bar.score) ** 2) ** 0.5)


def ceiling(scores: Sequence[tuple[str, float]], source: str) -> Ceiling | None:
    """The teacher's agreement with itself from (prompt, score); None where there is none."""
    if not scores:
        return None
    found = score_interval([score for _, score in scores], [prompt for prompt, _ in scores])
    return Ceiling(n=len(scores), score=found.mean, low=found.low, high=found.high, source=source)
