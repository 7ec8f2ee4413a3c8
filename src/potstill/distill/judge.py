"""What follows from the held-out answers: scores, whether the student can replace the teacher, and when it pays. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import combinations
from math import ceil

from potstill.distill.asking import Judged
from potstill.distill.metrics import METRIC, agreement
from potstill.distill.router import Nearness, router_rule
from potstill.distill.similarity import mean_similarity
from potstill.distill.stats import ceiling, enough, interval, low_less, score_interval
from potstill.records import Ceiling, Duel, Gain, Sample, Score, Verdict
from potstill.wording import counted

HALF = 0.5
"""A judge's score between equals: as many wins as losses."""


@dataclass(frozen=True)
class Case:
    """What the verdict is about: names, margin, traffic, and what was paid for the dataset."""

    student: str
    base: str
    teacher_model: str
    margin: float
    paid_usd: Decimal
    teacher_usd_per_request: Decimal
    requests_a_day: int = 1000


@dataclass(frozen=True)
class Evidence:
    """The answers before and after training, and what else is known.

    `earlier` are the answers of the student that stood here before. `nll` is (before, after) by role; "" is all. `near` is None where no encoder could be had; `encoder` names
    what measured the answers' similarity, or why nothing did.
    """

    before: Sequence[Judged]
    after: Sequence[Judged]
    earlier: Sequence[Judged] = ()
    near_duplicates: int = 0
    duel: Duel | None = None
    ceiling: Ceiling | None = None
    nll: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    near: Nearness | None = None
    encoder: str = ""


def score(judged: Sequence[Judged], nll: float | None = None) -> Score:
    """Mean agreement with its 95 % interval over prompts."""
    found = score_interval([item.score for item in judged], [item.sample.prompt_id for item in judged])
    formed = [item.well_formed for item in judged if item.well_formed is not None]
    return Score(
        n=len(judged),
        exact=sum(item.exact for item in judged) / len(judged),
        score=found.mean,
        low=found.low,
        high=found.high,
        well_formed=sum(formed) / len(formed) if formed else None,
        nll=nll,
        similarity=mean_similarity(judged),
    )


def own_agreement(samples: Sequence[Sample]) -> Ceiling | None:
    """The teacher's agreement with itself over the dataset's several answers to one prompt; None where it has one each."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sample in samples:
        groups[sample.prompt_id, sample.role].append(sample.messages[-1].content)
    scores = [
        (prompt, agreement(left, right).score)
        for (prompt, _), texts in groups.items()
        for left, right in combinations(texts, 2)
    ]
    return ceiling(scores, "several samples of one prompt in the dataset")


def verdict(case: Case, evidence: Evidence, at: datetime) -> Verdict:
    """Can the student replace the teacher? A non-inferiority test at the user's margin, on prompts never trained on.

    Judged in pairs, the student may lose `margin` of the half that equals would score. Else its agreement may lie
    `margin` below the teacher's agreement with itself, or below 1 where that is not known, which is too strict for open
    questions. What decides is the lower end of the 95 % interval, which counts the error of the teacher's own agreement too,
    and only where the prompts are `enough`. The student's own electricity is left out.
    """
    after = evidence.after
    roles = sorted({item.sample.role for item in after})
    found = score(after, evidence.nll.get("", (None, None))[1])
    by_role = {
        role: score([item for item in after if item.sample.role == role], evidence.nll.get(role, (None, None))[1])
        for role in roles
    }
    can_replace, reason = _test(evidence, found, case.margin)
    rule = router_rule(after, case.margin, case.teacher_usd_per_request, evidence.near)
    coverage = 1.0 if can_replace else rule.coverage
    requests, days = break_even(case, coverage)
    return Verdict(
        student=case.student,
        base=case.base,
        teacher_model=case.teacher_model,
        metric=METRIC,
        base_score=score(evidence.before, evidence.nll.get("", (None, None))[0]),
        student_score=found,
        by_role=by_role,
        margin=case.margin,
        can_replace=can_replace,
        reason=reason,
        router=rule,
        paid_usd=case.paid_usd,
        teacher_usd_per_request=case.teacher_usd_per_request,
        break_even_requests=requests,
        created_at=at,
        replaces_by_role=_by_role(evidence, by_role, case.margin),
        ceiling=evidence.ceiling,
        duel=evidence.duel,
        near_duplicates=evidence.near_duplicates,
        coverage_paid=coverage,
        requests_a_day=case.requests_a_day,
        break_even_days=days,
        encoder=evidence.encoder,
        gain=_gain(evidence),
    )


def break_even(case: Case, coverage: float) -> tuple[int | None, float | None]:
    """Requests and days until the dataset is paid back, where the student answers this share of all requests."""
    saved = case.teacher_usd_per_request * Decimal(str(coverage))
    if saved <= 0:
        return None, None
    requests = ceil(case.paid_usd / saved)
    return requests, round(requests / case.requests_a_day, 2)


def _gain(evidence: Evidence) -> Gain | None:
    """What changed against the earlier student, question by question; None where there is none."""
    if not evidence.earlier:
        return None
    pairs = list(zip(evidence.after, evidence.earlier, strict=True))
    found = interval([new.score - old.score for new, old in pairs], [new.sample.prompt_id for new, _ in pairs])
    earlier = sum(old.score for _, old in pairs) / len(pairs)
    return Gain(n=len(pairs), earlier=earlier, gain=found.mean, low=found.low, high=found.high)


def _test(evidence: Evidence, found: Score, margin: float) -> tuple[bool, str]:
    """Whether the student can replace the teacher, and why."""
    if evidence.duel is not None:
        low, bar, what = evidence.duel.low, HALF - margin, "the lower end of the judged score (0.50: equals)"
        prompts = min(evidence.duel.n, _prompts(evidence.after))
    else:
        low, bar = _agreement_test(evidence, found, margin)
        named = "1 - margin" if evidence.ceiling is None else "the teacher's with itself, less the margin"
        what, prompts = f"the lower end of its agreement (bar: {named})", _prompts(evidence.after)
    reason = f"{what}, {low:.2f}, {'reaches' if low >= bar else 'is below'} {bar:.2f}"
    if low >= bar and not enough(prompts, margin):
        return False, f"{reason}, but {counted(prompts, 'prompt')} cannot prove a margin of {margin:g}"
    return low >= bar, reason


def _agreement_test(evidence: Evidence, found: Score, margin: float) -> tuple[float, float]:
    """The lower end that decides, and the bar that it must reach."""
    if evidence.ceiling is None:
        return found.low, 1 - margin
    return low_less(found.score, found.low, evidence.ceiling), evidence.ceiling.score - margin


def _prompts(judged: Sequence[Judged]) -> int:
    return len({item.sample.prompt_id for item in judged})


def _by_role(evidence: Evidence, by_role: Mapping[str, Score], margin: float) -> dict[str, bool]:
    """The same test for each role alone."""
    return {role: _replaces(evidence, role, score, margin) for role, score in by_role.items()}


def _replaces(evidence: Evidence, role: str, score: Score, margin: float) -> bool:
    mine = [item for item in evidence.after if item.sample.role == role]
    if evidence.duel is None:
        low, bar = _agreement_test(evidence, score, margin)
    else:
        mine = [item for item in mine if item.points is not None]
        low, bar = _judged_low(mine), HALF - margin
    return low >= bar and enough(_prompts(mine), margin)


def _judged_low(judged: Sequence[Judged]) -> float:
    """The lower end of the judged score of these answers; 0 where there are none."""
    points = [item.points for item in judged if item.points is not None]
    return score_interval(points, [item.sample.prompt_id for item in judged]).low if points else 0.0
