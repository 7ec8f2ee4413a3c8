"""Where a cached answer may be served: a threshold with an upper bound on wrong hits, set on labelled pairs.

Every threshold of a fixed grid is tested on pairs that took no part in fitting: the share of wrong answers among those
that it would serve has a Clopper-Pearson upper bound (doi 10.1093/biomet/26.4.404) at a level that is divided by the
number of thresholds tried (Bonferroni), so that with 95 % confidence all bounds hold at once. Pairs that share a question are not independent, and count for fewer by
their design effect (Korn and Graubard 1998). Of those that stay under
`cache.max_wrong_rate` the one that serves most is taken; where none does, the semantic layer stays off.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

from potstill.infer.guard import veto
from potstill.infer.pairs import Pair, split_pairs
from potstill.infer.verifier import Verifier, fit_verifier
from potstill.records import Record

LEVEL = 0.05
"""One minus the confidence of the bound."""
COSINES = (0.80, 0.82, 0.84, 0.85, 0.86, 0.88, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98)
SERVED_SHARES = (0.4, 0.3, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08, 0.06, 0.045, 0.03, 0.02, 0.01)
"""A model's thresholds are its scores above which these shares of the fitted pairs lie."""
FIXED = (0.85, 0.9, 0.95)
BISECTIONS = 50

Signal = Literal["cosine", "verifier", "cross_encoder"]


class Point(Record):
    """One threshold on the pairs that set it: how many it would serve, how many of those wrong, and the bound on that.

    `hit_rate` is served / pairs; `recall` the share of the pairs with one answer that it would serve.
    """

    signal: Signal
    threshold: float
    served: int
    wrong: int
    upper: float
    hit_rate: float
    recall: float


class HeldOut(Record):
    """A rule on pairs that took part in nothing."""

    rule: str
    pairs: int
    served: int
    wrong: int
    wrong_rate: float
    hit_rate: float
    recall: float


class Calibration(Record):
    """`cache/calibration.json`. `signal` is None where no threshold meets the bound: the semantic layer is off."""

    schema_version: Literal[1] = 1
    created_at: datetime
    encoder: str
    source: str
    max_wrong_rate: float
    confidence: float
    signal: Signal | None
    threshold: float | None
    upper: float | None
    reason: str
    pairs: dict[str, int]
    same_share: float
    entries: int
    curve: tuple[Point, ...]
    held_out: tuple[HeldOut, ...]
    verifier: Verifier | None
    cross_encoder: str | None = None


@dataclass(frozen=True)
class Scored:
    """A labelled pair with what each signal says; a vetoed pair is never served."""

    pair: Pair
    cosine: float
    probability: float | None
    vetoed: bool
    crossed: float | None = None

    def value(self, signal: Signal) -> float:
        """The signal's value; minus infinity where the guard speaks against the pair or there is no such signal."""
        found = {"cosine": self.cosine, "verifier": self.probability, "cross_encoder": self.crossed}[signal]
        return -math.inf if self.vetoed or found is None else found


@dataclass(frozen=True)
class Circumstances:
    """What a calibration is made under, to be written down with it; `deal` is how the pairs are split."""

    encoder: str
    source: str
    max_wrong_rate: float
    entries: int
    now: datetime
    deal: str = ""
    cross_encoder: str | None = None


ScoresOf = Callable[[Sequence[Pair]], list[float]]
"""A number for each pair."""


def calibrate(
    pairs: Sequence[Pair], cosine_of: ScoresOf, about: Circumstances, cross_of: ScoresOf | None = None
) -> Calibration:
    """Fit a verifier, choose signal and threshold, and measure the choice on held-out pairs.

    With `cross_of`, a cross-encoder's scores, its thresholds are tried as well, and the bound is shared with them.
    """
    splits = split_pairs(pairs, about.deal)
    cosines = {name: cosine_of(found) for name, found in splits.items()}
    verifier = fit_verifier(splits["fit"], cosines["fit"])
    crossed = {name: cross_of(found) if cross_of else None for name, found in splits.items()}
    fitted, tested, held = (_scored(splits[name], cosines[name], verifier, crossed[name]) for name in splits)
    grid: list[tuple[Signal, float]] = [("cosine", value) for value in COSINES]
    grid += [("verifier", value) for value in _thresholds([item.probability for item in fitted])]
    grid += [("cross_encoder", value) for value in _thresholds([item.crossed for item in fitted])]
    effect = design_effect([item.pair for item in tested if not item.vetoed])
    curve = tuple(_point(tested, signal, threshold, LEVEL / len(grid), effect) for signal, threshold in grid)
    best = choose(curve, about.max_wrong_rate)
    return Calibration(
        created_at=about.now,
        encoder=about.encoder,
        source=about.source,
        max_wrong_rate=about.max_wrong_rate,
        confidence=1 - LEVEL,
        signal=best.signal if best else None,
        threshold=best.threshold if best else None,
        upper=best.upper if best else None,
        reason=_reason(best, curve, about.max_wrong_rate),
        pairs={name: len(found) for name, found in splits.items()},
        same_share=sum(pair.same for pair in pairs) / len(pairs),
        entries=about.entries,
        curve=curve,
        held_out=_compared(held, best),
        verifier=verifier,
        cross_encoder=about.cross_encoder,
    )


def choose(curve: Sequence[Point], max_wrong_rate: float) -> Point | None:
    """The point that serves most of those under the bound; None where there is none."""
    kept = [point for point in curve if point.served and point.upper <= max_wrong_rate]
    return max(kept, key=lambda point: (point.served - point.wrong, -point.upper), default=None)


def upper_bound(wrong: int, served: int, level: float) -> float:
    """Clopper-Pearson: the rate at which as few as `wrong` of `served` would have probability `level`. 1 for none served."""
    if served == 0 or wrong >= served:
        return 1.0
    low, high = wrong / served, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(wrong, served, middle) > level else (low, middle)
    return high


def lower_bound(wrong: int, served: int, level: float) -> float:
    """Clopper-Pearson from below: the rate at which as many as `wrong` of `served` would have probability `level`."""
    return 1.0 - upper_bound(served - wrong, served, level) if served else 0.0


def _at_most(wrong: int, served: int, rate: float) -> float:
    """Binomial distribution function, summed from its largest term down in logarithms."""
    total = 0.0
    constant = math.lgamma(served + 1)
    for count in range(wrong, -1, -1):
        term = constant - math.lgamma(count + 1) - math.lgamma(served - count + 1)
        value = math.exp(term + count * math.log(rate) + (served - count) * math.log1p(-rate))
        total += value
        if value < total * 1e-12:
            break
    return min(1.0, total)


def _scored(
    pairs: Sequence[Pair], cosines: Sequence[float], verifier: Verifier | None, crossed: Sequence[float] | None
) -> list[Scored]:
    crosses: Sequence[float | None] = crossed or [None] * len(pairs)
    return [
        Scored(
            pair,
            cosine,
            verifier.score(pair.question, pair.cached, cosine) if verifier else None,
            veto(pair.question, pair.cached) is not None,
            cross,
        )
        for pair, cosine, cross in zip(pairs, cosines, crosses, strict=True)
    ]


def _thresholds(scores: Sequence[float | None]) -> list[float]:
    """The scores above which certain shares of the fitted pairs lie."""
    values = sorted((score for score in scores if score is not None), reverse=True)
    return sorted({round(values[int(share * len(values))], 6) for share in SERVED_SHARES}) if values else []


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


def _point(tested: Sequence[Scored], signal: Signal, threshold: float, level: float, effect: float) -> Point:
    served = [item.pair.same for item in tested if item.value(signal) >= threshold]
    wrong = served.count(False)
    same = sum(item.pair.same for item in tested)
    return Point(
        signal=signal,
        threshold=threshold,
        served=len(served),
        wrong=wrong,
        upper=upper_bound(math.ceil(wrong / effect), math.floor(len(served) / effect), level),
        hit_rate=len(served) / len(tested) if tested else 0.0,
        recall=(len(served) - wrong) / same if same else 0.0,
    )


def _compared(held: Sequence[Scored], best: Point | None) -> tuple[HeldOut, ...]:
    """The chosen rule, then fixed cosines with and without the guard, on the held-out pairs."""
    found = []
    if best is not None:
        rule = f"calibrated: {best.signal} {best.threshold:.3f}, with guard"
        found.append(_held_out(rule, held, partial(_served, best.signal, best.threshold)))
    for fixed in FIXED:
        found.append(_held_out(f"cosine {fixed}", held, partial(_bare, fixed)))
        found.append(_held_out(f"cosine {fixed}, with guard", held, partial(_served, "cosine", fixed)))
    return tuple(found)


def _served(signal: Signal, threshold: float, item: Scored) -> bool:
    return item.value(signal) >= threshold


def _bare(threshold: float, item: Scored) -> bool:
    return item.cosine >= threshold


def _held_out(rule: str, held: Sequence[Scored], serves: Callable[[Scored], bool]) -> HeldOut:
    served = [item.pair.same for item in held if serves(item)]
    wrong, same = served.count(False), sum(item.pair.same for item in held)
    return HeldOut(
        rule=rule,
        pairs=len(held),
        served=len(served),
        wrong=wrong,
        wrong_rate=wrong / len(served) if served else 0.0,
        hit_rate=len(served) / len(held) if held else 0.0,
        recall=(len(served) - wrong) / same if same else 0.0,
    )


def _reason(best: Point | None, curve: Sequence[Point], max_wrong_rate: float) -> str:
    if best is not None:
        return (
            f"{best.signal} >= {best.threshold:.3f}: {best.wrong} of {best.served} served pairs were wrong, at most "
            f"{best.upper:.1%} with {1 - LEVEL:.0%} confidence over {len(curve)} thresholds"
        )
    served = [point for point in curve if point.served]
    if not served:
        return "no threshold would have served a single pair: the semantic layer stays off"
    least = min(served, key=lambda point: point.upper)
    return (
        f"no threshold keeps wrong hits under {max_wrong_rate:.1%}; the best bound is {least.upper:.1%} "
        f"({least.wrong} of {least.served} wrong at {least.signal} >= {least.threshold:.3f}): the semantic layer stays off"
    )
