"""How far the true share of wrong answers may lie from the one that was seen. Pure.

Clopper and Pearson's limits (doi 10.1093/biomet/26.4.404) through the beta distribution, at counts that need not be whole:
pairs that share a question count for fewer by their design effect (Korn and Graubard 1998).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from potstill.infer.pairs import Pair

LEVEL = 0.05
"""One minus the confidence of a bound."""
BISECTIONS = 50
TERMS = 10_000
"""A continued fraction of so many terms has settled for any count of pairs that can be labelled."""
SETTLED = 1e-13


def upper_bound(wrong: float, served: float, level: float) -> float:
    """The rate at which as few as `wrong` of `served` would have probability `level`. 1 for none served."""
    if served <= 0 or wrong >= served:
        return 1.0
    low, high = wrong / served, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(wrong, served, middle) > level else (low, middle)
    return high


def lower_bound(wrong: float, served: float, level: float) -> float:
    """The rate at which as many as `wrong` of `served` would have probability `level`."""
    return 1.0 - upper_bound(served - wrong, served, level) if served else 0.0


def _at_most(wrong: float, served: float, rate: float) -> float:
    """The binomial distribution function, continued to counts between the whole ones: 1 - I_rate(wrong + 1, served - wrong).

    I is the regularised incomplete beta function (DLMF 8.17), summed on the side where its fraction settles fast.
    """
    one, other = wrong + 1.0, served - wrong
    if other <= 0.0 or rate <= 0.0:
        return 1.0
    if rate >= 1.0:
        return 0.0
    if rate < (one + 1.0) / (one + other + 2.0):
        return 1.0 - _tail(one, other, rate)
    return _tail(other, one, 1.0 - rate)


def _tail(one: float, other: float, at: float) -> float:
    """I_at(one, other) by its continued fraction (DLMF 8.17.22), evaluated from the front (Lentz)."""
    logarithm = math.lgamma(one + other) - math.lgamma(one) - math.lgamma(other)
    front = math.exp(logarithm + one * math.log(at) + other * math.log1p(-at)) / one
    above, below = 1.0, 1.0 / (1.0 - (one + other) * at / (one + 1.0))
    value = below
    for term in range(1, TERMS):
        even, odd = one + 2 * term, one + 2 * term + 1
        before = value
        for part in (
            term * (other - term) * at / ((even - 1.0) * even),
            -(one + term) * (one + other + term) * at / (even * odd),
        ):
            below = 1.0 / (1.0 + part * below)
            above = 1.0 + part / above
            value *= above * below
        if abs(value - before) <= SETTLED * abs(value):
            break
    return front * value


def design_effect(pairs: Sequence[Pair]) -> float:
    """How many times the variance of a share of wrong pairs is that of as many independent ones; at least 1.

    Two pairs that share a question may go together, others do not (dyadic clusters, Aronow et al., arXiv 1312.3398).
    """
    rate = sum(not pair.same for pair in pairs) / max(1, len(pairs))
    by_question: defaultdict[str, float] = defaultdict(float)
    alone = 0.0
    for pair in pairs:
        over = (not pair.same) - rate
        alone += over * over
        for question in {pair.question, pair.cached}:
            by_question[question] += over
    together = sum(total * total for total in by_question.values()) - alone
    return max(1.0, together / alone) if alone else 1.0
