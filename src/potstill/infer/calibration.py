"""Where a cached answer may be served: a threshold with an upper bound on wrong hits, set on labelled pairs.

Each signal (cosine, verifier, cross-encoder) has its thresholds tested in a fixed order on pairs that took no part in fitting:
first the one that promises most on the fitted pairs, then looser ones until one fails (fixed-sequence testing, as in Learn
then Test, arXiv 2110.01052). So the level is divided by the number of signals only, and not by that of the thresholds.
The test: a Clopper-Pearson upper bound on the share of wrong answers among those served, for which linked pairs count for
fewer (see `bounds`). Of the thresholds reached under `cache.max_wrong_rate` the one that serves most is taken; where
none is, the semantic layer stays off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import accumulate
from typing import Literal

from potstill.infer.bounds import LEVEL, design_effect, upper_bound
from potstill.infer.guard import veto
from potstill.infer.pairs import Pair, split_pairs
from potstill.infer.verifier import Verifier, cross_fitted, fit_verifier
from potstill.records import Record

COSINES = tuple(round(0.8 + 0.01 * step, 2) for step in range(20))
SERVED_SHARES = (
    *(0.5, 0.45, 0.4, 0.35, 0.3, 0.27, 0.25, 0.22, 0.2, 0.18, 0.16, 0.145, 0.13),
    *(0.115, 0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.045, 0.037, 0.03, 0.025, 0.02),
)
"""A model's thresholds are its scores above which these shares of the fitted pairs lie."""
FIXED = (0.85, 0.9, 0.95)

Signal = Literal["cosine", "verifier", "cross_encoder"]


class Point(Record):
    """One threshold on the pairs that set it: how many it would serve, how many of those wrong, and the bound on that.

    `upper` is the highest bound from its signal's first threshold to this one: the least rate under which the tests get
    here. `hit_rate` is served / pairs; `recall` the share of the pairs with one answer that it would serve.
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
    unseen = cross_fitted(splits["fit"], cosines["fit"]) if verifier else None
    fitted = _scored(splits["fit"], cosines["fit"], unseen, crossed["fit"])
    tested, held = (
        _scored(splits[name], cosines[name], _probabilities(verifier, splits[name], cosines[name]), crossed[name])
        for name in ("calibrate", "heldout")
    )
    grids: dict[Signal, Sequence[float]] = {
        "cosine": COSINES,
        "verifier": _thresholds([item.probability for item in fitted]),
        "cross_encoder": _thresholds([item.crossed for item in fitted]),
    }
    level = LEVEL / sum(bool(grid) for grid in grids.values())
    curve = tuple(
        point for signal, grid in grids.items() if grid for point in sequence(fitted, tested, signal, grid, level)
    )
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


def sequence(
    fitted: Sequence[Scored], tested: Sequence[Scored], signal: Signal, grid: Sequence[float], level: float
) -> list[Point]:
    """A signal's thresholds in the order of their tests, from the one with the least bound on the fitted pairs to the loosest."""
    order = sorted(grid, reverse=True)
    hopes = _points(fitted, signal, order, level)
    first = min(range(len(order)), key=lambda place: hopes[place].upper)
    points = _points(tested, signal, order[first:], level)
    highest = accumulate((point.upper for point in points), max)
    return [point.model_copy(update={"upper": upper}) for point, upper in zip(points, highest, strict=True)]


def _probabilities(
    verifier: Verifier | None, pairs: Sequence[Pair], cosines: Sequence[float]
) -> list[float | None] | None:
    if verifier is None:
        return None
    return [verifier.score(pair.question, pair.cached, cosine) for pair, cosine in zip(pairs, cosines, strict=True)]


def _scored(
    pairs: Sequence[Pair],
    cosines: Sequence[float],
    probabilities: Sequence[float | None] | None,
    crossed: Sequence[float | None] | None,
) -> list[Scored]:
    none = [None] * len(pairs)
    return [
        Scored(pair, cosine, probability, veto(pair.question, pair.cached) is not None, cross)
        for pair, cosine, probability, cross in zip(pairs, cosines, probabilities or none, crossed or none, strict=True)
    ]


def _thresholds(scores: Sequence[float | None]) -> list[float]:
    """The scores above which certain shares of the fitted pairs lie, rounded down: also those of a model that is sure."""
    values = sorted((score for score in scores if score is not None), reverse=True)
    found = [values[int(share * len(values))] for share in SERVED_SHARES] if values else []
    return sorted({math.floor(1e6 * value) / 1e6 for value in found})


def _points(pairs: Sequence[Scored], signal: Signal, thresholds: Sequence[float], level: float) -> list[Point]:
    whole = design_effect([item.pair for item in pairs if not item.vetoed])
    return [_point(pairs, signal, threshold, level, whole) for threshold in thresholds]


def _point(pairs: Sequence[Scored], signal: Signal, threshold: float, level: float, whole: float) -> Point:
    served = [item.pair for item in pairs if item.value(signal) >= threshold]
    effect = max(whole, design_effect(served))  # near pairs may hang together more than all do
    wrong = sum(not pair.same for pair in served)
    same = sum(item.pair.same for item in pairs)
    return Point(
        signal=signal,
        threshold=threshold,
        served=len(served),
        wrong=wrong,
        upper=upper_bound(wrong / effect, len(served) / effect, level),
        hit_rate=len(served) / len(pairs) if pairs else 0.0,
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
            f"{best.upper:.1%} with {1 - LEVEL:.0%} confidence"
        )
    served = [point for point in curve if point.served]
    if not served:
        return "no threshold would have served a single pair: the semantic layer stays off"
    least = min(served, key=lambda point: point.upper)
    return (
        f"no threshold keeps wrong hits under {max_wrong_rate:.1%}; the best bound is {least.upper:.1%} "
        f"({least.wrong} of {least.served} wrong at {least.signal} >= {least.threshold:.3f}): the semantic layer stays off"
    )
