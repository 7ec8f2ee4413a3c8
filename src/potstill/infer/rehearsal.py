"""Recorded questions asked of another student, on this machine and for nothing: what it would save, how often it errs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from potstill.infer.agreement import agreement
from potstill.infer.decide import AskTeacher, Nearness, Policy, TakeStudent, after_students, before_students
from potstill.infer.panel import Panel
from potstill.infer.private import HASHED, HIDDEN
from potstill.infer.replay import AGREES, Outcome, total
from potstill.infer.store import Entry
from potstill.records import Familiar, Message, Trace
from potstill.student.familiar import Known, Reader, nearness

HITS = ("exact", "semantic")
GEMINIS = ("teacher", "merged")


@dataclass(frozen=True)
class Candidate:
    """Another student, and when it may stand alone by its verdict. `known`: what it was taught, as `reader` sees it."""

    panel: Panel
    policy: Policy
    known: Known | None = None
    reader: Reader | None = None

    def near(self, questions: Iterable[str]) -> dict[str, Nearness]:
        """How near questions are to what it was taught; empty where its rule does not ask."""
        familiar: Familiar | None = self.policy.familiar
        if familiar is None:
            return {}
        known, reader = self.known, self.reader
        if known is None or reader is None or not reader.id == known.encoder == familiar.encoder:
            return dict.fromkeys(questions, Nearness(why="the encoder is another one than at its distillation"))
        found = nearness(questions, known, reader)
        return {text: Nearness(cosine, "unreadable", foreign=cosine is None) for text, cosine in found.items()}


def geminis_answers(traces: Iterable[Trace], entries: Iterable[Entry]) -> dict[str, str]:
    """What Gemini said to the recorded questions, as far as the cache still has it."""
    wanted = {trace.entry_id: trace.query for trace in traces}
    return {wanted[entry.id]: entry.answer for entry in entries if entry.id in wanted and entry.route in GEMINIS}


async def rehearse(traces: Sequence[Trace], candidate: Candidate, geminis: Mapping[str, str]) -> Outcome:
    """The recorded hits stay hits; of the other questions the candidate answers those that its rule lets it, Gemini the rest.

    Gemini alone is what a question costs then. An answer that shares less than half its words with Gemini's, where that
    is known, counts as disagreed. A question that stands hidden or hashed in its trace goes to Gemini.
    """
    missed = {trace.query for trace in traces if trace.route not in HITS}
    questions = [text for text in sorted(missed) if text != HIDDEN and not text.startswith(HASHED)]
    near = candidate.near(questions)
    steps = await asyncio.gather(*(_step(candidate, text, near.get(text)) for text in questions))
    alone = {
        text: step.answer.text for text, step in zip(questions, steps, strict=True) if isinstance(step, TakeStudent)
    }
    students = [trace for trace in traces if trace.route not in HITS and trace.query in alone]
    gemini = [trace for trace in traces if trace.route not in HITS and trace.query not in alone]
    agreements = [agreement(alone[item.query], geminis[item.query]) for item in students if item.query in geminis]
    return Outcome(
        rule=f"student {candidate.panel.student.name}, {candidate.policy.reason}",
        hits=len(traces) - len(students) - len(gemini),
        students=len(students),
        gemini=len(gemini),
        cost_usd=(cost := sum((trace.baseline_usd for trace in gemini), Decimal(0))),
        share_of_all_gemini=float(cost / baseline) if (baseline := total(traces)) else 0.0,
        disagreed=sum(value < AGREES for value in agreements),
        compared=len(agreements),
    )


async def _step(candidate: Candidate, question: str, near: Nearness | None) -> TakeStudent | AskTeacher:
    if near is not None and (foreign := before_students(candidate.policy, near)) is not None:
        return foreign
    answers = await candidate.panel.ask((Message(role="user", content=question),))
    return after_students(candidate.policy, answers, near)
