"""Held-out answers against the teacher's stored ones, and what follows from it. Pure but for `answers`."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from math import ceil
from statistics import NormalDist

from potstill.records import RouterRule, Sample, Score, Verdict
from potstill.student.answers import Student, StudentAnswer, StudentQuery

METRIC = "word F1 with the teacher's answer (1: the same words), 95 % bootstrap interval"
RESAMPLES = 2000
GRID = (0.0, 0.1, 0.25, 0.5, 0.75)
"""Shares of the least confident answers that a router could send on; each is one test, so the level is divided."""
BATCH = 32


@dataclass(frozen=True)
class Judged:
    """One held-out answer beside the teacher's."""

    sample: Sample
    answer: StudentAnswer
    score: float
    exact: bool

    @property
    def question(self) -> str:
        """What was asked."""
        return self.sample.messages[-2].content

    @property
    def reference(self) -> str:
        """What the teacher said."""
        return self.sample.messages[-1].content


def answers(student: Student, samples: Sequence[Sample], max_new_tokens: int) -> list[Judged]:
    """Let the student answer greedily what it never saw, and score each answer."""
    found: list[Judged] = []
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        queries = [
            StudentQuery(role=sample.role, messages=sample.messages[:-1], max_new_tokens=max_new_tokens)
            for sample in batch
        ]
        for sample, answer in zip(batch, student.answer(queries), strict=True):
            reference = sample.messages[-1].content
            found.append(Judged(sample, answer, word_f1(answer.text, reference), same(answer.text, reference)))
    return found


def word_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words (over characters in Chinese), as in SQuAD (arXiv 1606.05250)."""
    left, right = Counter(_words(answer)), Counter(_words(reference))
    common = sum((left & right).values())
    return 2 * common / (left.total() + right.total()) if common else 0.0


def same(answer: str, reference: str) -> bool:
    """Whether two answers are the same but for spacing."""
    return answer.split() == reference.split()


def score(judged: Sequence[Judged]) -> Score:
    """Mean score with a percentile bootstrap interval over prompts (Efron 1979), seeded."""
    values = [item.score for item in judged]
    draw = random.Random(0)  # noqa: S311  (statistics)
    means = sorted(sum(draw.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES))
    return Score(
        n=len(values),
        exact=sum(item.exact for item in judged) / len(values),
        score=sum(values) / len(values),
        low=means[int(0.025 * RESAMPLES)],
        high=means[int(0.975 * RESAMPLES)],
    )


def router_rule(judged: Sequence[Judged], margin: float) -> RouterRule:
    """The lowest threshold on the mean log-probability above which the student keeps its promise.

    The promise: of the answers above it, the share that scores at least 1 - margin is itself at least 1 - margin, by a
    one-sided 95 % Wilson bound (1927), the level divided by the number of thresholds tried (Bonferroni).
    """
    ranked = sorted(judged, key=_confidence, reverse=True)
    best = 0.0
    for skipped in GRID:
        kept = ranked[: len(ranked) - int(skipped * len(ranked))]
        if not kept:
            break
        threshold = _confidence(kept[-1])
        kept = [item for item in ranked if _confidence(item) >= threshold]  # equally sure answers are routed alike
        good = sum(item.score >= 1 - margin for item in kept)
        bound = wilson_low(good, len(kept), 0.05 / len(GRID))
        best = max(best, bound)
        if bound >= 1 - margin:
            reason = f"{good} of {len(kept)} answers above it agree with the teacher"
            coverage = len(kept) / len(ranked)
            return RouterRule(threshold=threshold, coverage=coverage, agreement_low=bound, reason=reason)
    reason = (
        f"no threshold keeps {1 - margin:.0%} agreement; the best lower bound is {best:.0%} on {len(ranked)} answers"
    )
    return RouterRule(threshold=None, coverage=0.0, agreement_low=best, reason=reason)


def wilson_low(good: int, total: int, level: float) -> float:
    """Lower bound of a share at a one-sided level (Wilson 1927, doi 10.1080/01621459.1927.10502953)."""
    z = NormalDist().inv_cdf(1 - level)
    share = good / total
    centre = share + z * z / (2 * total)
    spread = z * ((share * (1 - share) + z * z / (4 * total)) / total) ** 0.5
    return max(0.0, float((centre - spread) / (1 + z * z / total)))


@dataclass(frozen=True)
class Case:
    """What the verdict is about: names, margin, and what was paid for the dataset."""

    student: str
    base: str
    teacher_model: str
    margin: float
    paid_usd: Decimal
    teacher_usd_per_request: Decimal


def verdict(case: Case, before: Sequence[Judged], after: Sequence[Judged], at: datetime) -> Verdict:
    """Can the student replace the teacher? It can where its interval's lower end reaches 1 - margin.

    The teacher is taken to agree with itself fully, which is too strict for open questions. Break-even counts the
    dataset's price against the teacher's price a request; the student's own electricity is left out.
    """
    found = score(after)
    can_replace = found.low >= 1 - case.margin
    word = "reaches" if can_replace else "is below"
    reason = f"the lower end of its interval, {found.low:.2f}, {word} 1 - margin = {1 - case.margin:.2f}"
    roles = sorted({item.sample.role for item in after})
    each = case.teacher_usd_per_request
    return Verdict(
        student=case.student,
        base=case.base,
        teacher_model=case.teacher_model,
        metric=METRIC,
        base_score=score(before),
        student_score=found,
        by_role={role: score([item for item in after if item.sample.role == role]) for role in roles},
        margin=case.margin,
        can_replace=can_replace,
        reason=reason,
        router=router_rule(after, case.margin),
        paid_usd=case.paid_usd,
        teacher_usd_per_request=each,
        break_even_requests=ceil(case.paid_usd / each) if each else None,
        created_at=at,
    )


def _confidence(item: Judged) -> float:
    return item.answer.mean_logprob if item.answer.mean_logprob is not None else float("-inf")


def _words(text: str) -> list[str]:
    return re.findall(r"[㐀-鿿]|[^\W㐀-鿿]+", text.lower())
