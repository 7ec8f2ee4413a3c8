"""When may the router leave the teacher out? A threshold on the student's confidence, with a bound on its risk. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import takewhile

from potstill.distill.asking import Judged
from potstill.distill.stats import LEVEL, wilson_low
from potstill.records import Familiar, RouterPoint, RouterRule
from potstill.wording import counted

GRID = (0.75, 0.5, 0.25, 0.1, 0.0)
"""Shares of the least confident prompts that could be sent on, in the order in which they are tried."""
FOREIGN_SHARE = 0.05
"""Share of the held-out questions, those farthest from the training questions, that count as foreign."""


@dataclass(frozen=True)
class Nearness:
    """How near each held-out question is to the nearest of so many training questions; None: it cannot be read."""

    encoder: str
    questions: int
    cosines: Mapping[str, float | None]


def router_rule(
    judged: Sequence[Judged], margin: float, teacher_usd: Decimal = Decimal(0), near: Nearness | None = None
) -> RouterRule:
    """The lowest threshold on the mean log-probability above which the student keeps its promise.

    As in `infer`, of several roles' answers to one prompt the surest counts. The promise: of the prompts above the
    threshold, the share that is answered well is at least 1 - margin, by a one-sided 95 % Wilson bound. Thresholds are
    tried from the strictest on and the first that fails ends it, so that each has the whole level (fixed-sequence
    testing, as in Learn then Test, arXiv 2110.01052). The strictest are left out where too few prompts lie above them
    to forgive one wrong answer, which their number alone decides.

    With `near`, questions farther from the training questions than all but 5 % of the held-out ones go to the teacher
    whatever the threshold: a bound proven on held-out questions says nothing about such. That limit is set without a
    look at the answers, so it costs no level.
    """
    ranked = surest(judged)
    bare = _rule(ranked, len(ranked), margin, teacher_usd)
    if near is None or (familiar := _familiar(near)) is None:
        return bare
    taught = [item for item in ranked if _is_near(near.cosines[item.question], familiar)]
    rule = _rule(taught, len(ranked), margin, teacher_usd)
    limit = f"; a question below cosine {familiar.least_cosine:.2f} to all training questions goes to the teacher"
    return rule.model_copy(update={"familiar": familiar, "alone": bare, "reason": rule.reason + limit})


def _familiar(near: Nearness) -> Familiar | None:
    cosines = sorted(cosine for cosine in near.cosines.values() if cosine is not None)
    if not cosines:
        return None
    return Familiar(
        encoder=near.encoder, least_cosine=cosines[int(FOREIGN_SHARE * len(cosines))], questions=near.questions
    )


def _is_near(cosine: float | None, familiar: Familiar) -> bool:
    return cosine is not None and cosine >= familiar.least_cosine


def _rule(ranked: Sequence[Judged], prompts: int, margin: float, teacher_usd: Decimal) -> RouterRule:
    """The rule for these answers, the surest first, out of so many prompts."""
    points = (_point(ranked, prompts, skipped, margin, teacher_usd) for skipped in GRID)
    curve = tuple(point for point in points if point is not None)
    tried = [point for point in curve if _forgiving(round(point.coverage * prompts), margin)]
    kept = list(takewhile(lambda point: point.agreement_low >= 1 - margin, tried))
    if not kept:
        why = f"its lower bound is {tried[0].agreement_low:.1%}" if tried else "there are too few"
        share = tried[0].coverage if tried else 1.0
        reason = f"no threshold keeps {1 - margin:.0%} agreement: on the surest {share:.0%} of {counted(prompts, 'prompt')} {why}"
        low = tried[0].agreement_low if tried else 0.0
        return RouterRule(threshold=None, coverage=0.0, agreement_low=low, reason=reason, curve=curve)
    point = kept[-1]
    count = round(point.coverage * prompts)
    reason = (
        f"the teacher can be left out from a mean log-probability of {point.threshold:.3f} on, for {point.coverage:.0%} of "
        f"prompts: {round(point.agreement * count)} of {counted(count, 'answer')} there agree with the teacher"
    )
    return RouterRule(
        threshold=point.threshold,
        coverage=point.coverage,
        agreement_low=point.agreement_low,
        reason=reason,
        curve=curve,
    )


def _forgiving(count: int, margin: float) -> bool:
    """Whether so many prompts prove the promise although one of them was answered wrong."""
    return count > 1 and wilson_low(count - 1, count, LEVEL) >= 1 - margin


def surest(judged: Sequence[Judged]) -> list[Judged]:
    """The surest answer to each prompt, the surest prompt first; an answer that was cut off is the least sure."""
    best: dict[tuple[str, int], Judged] = {}
    for item in judged:
        key = (item.sample.prompt_id, item.sample.sample)
        if key not in best or _confidence(item) > _confidence(best[key]):
            best[key] = item
    return sorted(best.values(), key=_confidence, reverse=True)


def _point(
    ranked: Sequence[Judged], prompts: int, skipped: float, margin: float, teacher_usd: Decimal
) -> RouterPoint | None:
    """What happens when the threshold leaves out this share of the prompts; None where there is no such threshold."""
    whole = [item for item in ranked if _confidence(item)[0] and _confidence(item)[1] > float("-inf")]
    kept = whole[: min(len(whole), prompts - int(skipped * prompts))]
    if not kept:
        return None
    threshold = _confidence(kept[-1])[1]
    kept = [item for item in whole if _confidence(item)[1] >= threshold]  # equally sure answers are routed alike
    good = sum(item.good(margin) for item in kept)
    bound = wilson_low(good, len(kept), LEVEL)
    coverage = len(kept) / prompts
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
