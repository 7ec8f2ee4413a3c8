"""When a near question's answer is served: the rule that calibration, config and audits leave. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potstill.config import CacheConfig
from potstill.infer.bounds import LEVEL, lower_bound
from potstill.infer.calibration import Calibration
from potstill.infer.guard import veto
from potstill.infer.store import Judged
from potstill.infer.verifier import Verifier
from potstill.wording import counted

SAFE_COSINE = 0.95
"""Without a calibration. On Quora pairs with MiniLM and the guard, 11 % of what it serves is wrong by label (a good half
of that in truth), where the source design's 0.85 has 23 %."""
GROWN = 2
"""A cache this many times as large as at its calibration says that it should be calibrated anew."""
SMALL = 1000
"""A cache below this is not yet said to have grown: of 500 entries hardly one is near an unrelated question."""
AUDITED = ("audit", "shadow")
"""Where verdicts come from that do not pick wrong hits, as feedback does."""


@dataclass(frozen=True)
class Rule:
    """Serve a cached answer from this score on; `says` is what an asker is told about it.

    `verifier` gives the score; None: the score is the cosine. With `cross_encoder`, the id of one, each candidate
    brings the score that it gave.
    """

    threshold: float
    says: str
    verifier: Verifier | None = None
    cross_encoder: str | None = None

    @property
    def signal(self) -> str:
        """What the score is."""
        return "cross-encoder" if self.cross_encoder else "cosine" if self.verifier is None else "verifier"

    def score(self, question: str, cached: str, cosine: float, crossed: float = 0.0) -> float:
        """How near the cached question is; higher is nearer."""
        if self.cross_encoder is not None:
            return crossed
        return cosine if self.verifier is None else self.verifier.score(question, cached, cosine)


@dataclass(frozen=True)
class Off:
    """The semantic layer serves nothing, for this reason."""

    reason: str


@dataclass(frozen=True)
class Candidate:
    """A cached question beside the asked one; a score up to `floor` was wrong before. `crossed`: a cross-encoder's score."""

    question: str
    cosine: float
    floor: float = 0.0
    crossed: float = 0.0


@dataclass(frozen=True)
class Hit:
    """Serve candidate number `place` of a semantic lookup."""

    place: int
    score: float
    reason: str


@dataclass(frozen=True)
class Miss:
    """Nothing in the cache fits; `place` is the nearest candidate that no guard speaks against, with its score."""

    reason: str
    place: int | None = None
    score: float | None = None


def semantic_rule(
    cache: CacheConfig, calibration: Calibration | None, encoder: str, judged: Sequence[Judged], entries: int
) -> Rule | Off:
    """The rule for vectors of an encoder, in a cache of so many entries. `judged`: the verdicts since the calibration.

    A threshold in the config wins, then a calibration of this encoder, then a cautious default.
    """
    if cache.threshold is not None:
        return Rule(cache.threshold, "set by cache.threshold, wrong hits have no bound")
    if calibration is None:
        return Rule(SAFE_COSINE, "not calibrated, wrong hits have no bound: see --calibrate")
    if calibration.encoder != encoder:
        return Rule(SAFE_COSINE, "calibrated for another encoder: calibrate anew")
    verifier = calibration.verifier if calibration.signal == "verifier" else None
    if verifier is not None and not verifier.current:
        return Rule(SAFE_COSINE, "calibrated by another version of potstill: calibrate anew")
    if calibration.signal == "cross_encoder" and cache.cross_encoder is None:
        return Rule(SAFE_COSINE, f"calibrated with cache.cross_encoder {calibration.cross_encoder}, which is not set")
    return _calibrated(cache.max_wrong_rate, calibration, judged, entries)


def _calibrated(max_wrong_rate: float, calibration: Calibration, judged: Sequence[Judged], entries: int) -> Rule | Off:
    if calibration.threshold is None or calibration.upper is None:
        return Off(calibration.reason)
    if calibration.upper > max_wrong_rate:
        return Off(f"calibrated to {calibration.upper:.1%} wrong, cache.max_wrong_rate is lower: calibrate anew")
    audited = [item.fits for item in judged if item.source in AUDITED]
    wrong = audited.count(False)
    if lower_bound(wrong, len(audited), LEVEL) > max_wrong_rate:
        return Off(f"{wrong} of {len(audited)} audited hits were wrong, more than {max_wrong_rate:.1%}: calibrate anew")
    says = f"at most {calibration.upper:.1%} wrong by calibration"
    if entries > GROWN * max(SMALL, calibration.entries):
        says += f" at {counted(calibration.entries, 'cached question')}, now {entries}: calibrate anew"
    verifier = calibration.verifier if calibration.signal == "verifier" else None
    cross_encoder = calibration.cross_encoder if calibration.signal == "cross_encoder" else None
    return Rule(calibration.threshold, says, verifier, cross_encoder)


def judge_neighbours(question: str, neighbours: Sequence[Candidate], rule: Rule) -> Hit | Miss:
    """Choose among cached questions, nearest first: the nearest that scores enough and that no guard speaks against."""
    nearest: tuple[int, float] | None = None
    reason = ""
    for place, found in enumerate(neighbours):
        score = rule.score(question, found.question, found.cosine, found.crossed)
        if nearest is not None and score < rule.threshold:
            continue
        against = veto(question, found.question)
        if nearest is None and against is None:
            nearest = (place, score)
        if score < rule.threshold:
            why = f"nearest cached question at {rule.signal} {score:.3f} < {rule.threshold:.3g} ({rule.says})"
        elif against is not None:
            why = f"{rule.signal} {score:.3f}, but {against}"
        elif score <= found.floor:
            why = f"{rule.signal} {score:.3f}, but as near a question was answered wrongly before"
        else:
            return Hit(place, score, f"{rule.signal} {score:.3f} >= {rule.threshold:.3g} ({rule.says})")
        reason = reason or why
    return Miss(reason or "no cached question near it", *(nearest or ()))
