"""A student's greedy answers to held-out questions, each beside the teacher's stored one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.distill.heldout import question_of
from potstill.distill.metrics import agreement
from potstill.records import Sample
from potstill.student.answers import Student, StudentAnswer, StudentQuery
from potstill.student.local import LocalStudent

BATCH = 32


@dataclass(frozen=True)
class Judged:
    """One held-out answer beside the teacher's. `points` is the judge's word: 1 better, 0.5 a tie, 0 worse; else None.

    `similarity`: cosine of the two answers' embeddings, None where it was not measured.
    """

    sample: Sample
    answer: StudentAnswer
    score: float
    exact: bool
    well_formed: bool | None = None
    points: float | None = None
    similarity: float | None = None

    @property
    def question(self) -> str:
        """What was asked."""
        return question_of(self.sample)

    @property
    def reference(self) -> str:
        """What the teacher said."""
        return self.sample.messages[-1].content

    def good(self, margin: float) -> bool:
        """Whether the answer could stand for the teacher's: by the judge where there was one, else by agreement."""
        return self.score >= 1 - margin if self.points is None else self.points > 0


def answers(student: Student, samples: Sequence[Sample], max_new_tokens: int) -> list[Judged]:
    """Let the student answer greedily what it never saw, and compare each answer."""
    found: list[Judged] = []
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        queries = [
            StudentQuery(role=sample.role, messages=sample.messages[:-1], max_new_tokens=max_new_tokens)
            for sample in batch
        ]
        for sample, answer in zip(batch, student.answer(queries), strict=True):
            found.append(Judged(sample, answer, *agreement(answer.text, sample.messages[-1].content)))
    return found


def likelihood(student: LocalStudent, samples: Sequence[Sample], max_length: int) -> dict[str, float]:
    """Nats a token that the teacher's answers cost the student: by role, and over all as ""."""
    nats: dict[str, float] = defaultdict(float)
    tokens: dict[str, int] = defaultdict(int)
    for sample in samples:
        cost, count = student.nll(sample.role, sample.messages, max_length)
        for name in ("", sample.role):
            nats[name] += cost
            tokens[name] += count
    return {name: nats[name] / tokens[name] for name in nats if tokens[name]}
