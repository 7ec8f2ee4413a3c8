"""When may the router leave the teacher out? A threshold on the student's confidence, with a bound on its risk. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from potstill.distill.asking import Judged
from potstill.distill.stats import wilson_low
from potstill.records import RouterPoint, RouterRule

GRID = (0.0, 0.1, 0.25, 0.5, 0.75)
"""Shares of the least confident prompts that could be sent on; each is one test, so the level is divided."""
LEVEL = 0.05


def router_rule(judged: Sequence[Judged], margin: float, teacher_usd: Decimal = Decimal(0)) -> RouterRule:
    """The lowest threshold on the mean log-probability above which the student keeps its promise.

    As in `infer`, of several roles' answers to one prompt the surest counts. The promise: of the prompts above the
    threshold, the share that is answered well is at least 1 - margin, by a one-sided 95 % Wilson bound, the level
    divided by the number of thresholds tried (Bonferroni; after Learn then Test, arXiv 2110.01052).
    """
    ranked = surest(judged)
    curve = tuple(point for skipped in GRID if (point := _point(ranked, skipped, margin, teacher_usd)) is not None)
    best = max((point.agreement_low for point in curve), default=0.0)
    for point in curve:
        if point.agreement_low >= 1 - margin:
            count = round(point.coverage * len(ranked))
            reason = (
                f"the teacher can be left out from a mean log-probability of {point.threshold:.3f} on, for {point.coverage:.0%} of "
                f"prompts: {round(point.agreement * count)} of {count} answers there agree with the teacher"
            )
            return RouterRule(
                threshold=point.threshold,
                coverage=point.coverage,
                agreement_low=point.agreement_low,
                reason=reason,
                curve=curve,
            )
    reason = (
        f"no threshold keeps {1 - margin:.0%} agreement; the best lower bound is {best:.1%} on {len(ranked)} prompts"
    )
    return RouterRule(threshold=None, coverage=0.0, agreement_low=best, reason=reason, curve=curve)


def surest(judged: Sequence[Judged]) -> list[Judged]:
    """The surest answer to each prompt, the surest prompt first; an answer that was cut off is the least sure."""
    best: dict[tuple[str, int], Judged] = {}
    for item in judged:
        key = (item.sample.prompt_id, item.sample.sample)
        if key not in best or _confidence(item) > _confidence(best[key]):
            best[key] = item
    return sorted(best.values(), key=_confidence, reverse=True)


def _point(ranked: Sequence[Judged], skipped: float, margin: float, teacher_usd: Decimal) -> RouterPoint | None:
    """What happens when the threshold leaves out this share; None where there is no such threshold."""
    whole = [item for item in ranked if _confidence(item)[0] and _confidence(item)[1] > float("-inf")]
    kept = whole[: min(len(whole), len(ranked) - int(skipped * len(ranked)))]
    if not kept:
        return None
    threshold = _confidence(kept[-1])[1]
    kept = [item for item in whole if _confidence(item)[1] >= threshold]  # equally sure answers are routed alike
    good = sum(item.good(margin) for item in kept)
    bound = wilson_low(good, len(kept), LEVEL / len(GRID))
    coverage = len(kept) / len(ranked)
    return RouterPoint(
        threshold=threshold,
        coverage=coverage,
        agreement=good / len(kept),
        agreement_low=bound,
        risk_high=1 - bound,
        saved_usd_per_1000=teacher_usd * 1000 * Decimal(str(round(coverage, 6))),
    )


def _confidence(item: Judged) -> tuple[bool, float]:
    logprob = item.answer.mean_logprob
    return item.answer.finish_reason == "stop", float("-inf") if logprob is None else logprob
