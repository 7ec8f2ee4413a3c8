"""The plan's answers in the ledger, each taken through the paid steps as a run would: what that cost, what it lacks.

Streamed, several times over; nothing is held for each answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from potstill.generate import converse, judge
from potstill.generate.dataset import Extra
from potstill.generate.outcomes import second_request
from potstill.generate.pieces import Lengths, Piece, Talk
from potstill.generate.plan import Plan
from potstill.generate.rationales import Rationales
from potstill.generate.refine import gauge_of, without_best
from potstill.generate.run import stored_samples
from potstill.generate.sift import NOT_THE_BEST, Kept, Rejection, Score, sift
from potstill.ledger import LedgerView
from potstill.pricing.tokens import estimate_tokens
from potstill.records import Sample, Usage
from potstill.teacher.calls import Answer, TeacherRequest
from potstill.teacher.paid import stored_answer


@dataclass(frozen=True)
class Visit:
    """What a step was billed for one answer, and what it still asks for it. Neither: it leaves the answer alone."""

    paid: tuple[Usage, ...] = ()
    lacking: tuple[Piece, ...] = ()


class Stored:
    """The stored answers of a plan, and of elsewhere, seen by each step."""

    def __init__(self, plan: Plan, ledger: LedgerView, extra: Extra, lengths: Lengths) -> None:
        self._plan, self._ledger, self._extra, self._lengths = plan, ledger, extra, lengths
        self._config, self._generate = plan.config, plan.config.generate
        self._gauge = gauge_of(plan)

    def visits(self, steps: Iterable[str]) -> Iterator[tuple[str, Visit]]:
        """All visits of some steps, by name."""
        visiting = {
            "second_tries": self._second_tries,
            "converse": self._turns,
            "judge": self._marks,
            "rationale": self._reasons,
        }
        return ((step, visit) for step in steps for visit in visiting[step]())

    def _second_tries(self) -> Iterator[Visit]:
        for cell in self._plan:
            first = self._stored(cell.request)
            if first is None:
                continue
            longer = second_request(cell.request, first, self._generate)
            yield Visit() if longer is None else self._visit(longer, self._lengths.again())

    def _turns(self) -> Iterator[Visit]:
        talks = converse.Conversations(self._config)
        for sample, verdict in sift(self._answered(), without_best(self._gauge)):
            if not isinstance(verdict, Kept):
                yield Visit()
                continue
            answers: list[Answer] = []
            answer: Answer | None
            while (request := talks.next_request(sample, answers)) is not None:
                if (answer := self._stored(request)) is None:
                    break
                answers.append(answer)
            lacking = () if request is None else self._lengths.turns(_talk(sample, answers), len(answers))
            yield Visit(tuple(answer.usage for answer in answers), tuple(lacking))

    def _marks(self) -> Iterator[Visit]:
        rubric, usual = judge.Rubric(self._config), self._lengths.mark()
        for sample, verdict in sift(self._chats(), without_best(self._gauge)):
            yield self._visit(rubric.request(sample), usual) if isinstance(verdict, Kept) else Visit()

    def _reasons(self) -> Iterator[Visit]:
        """An answer without a mark may be kept yet; of one that is not the best, nothing is learned."""
        reasons, usual, gauge = Rationales(self._config), self._lengths.reason(), self._gauge
        if self._generate.judge.enabled:
            rubric = judge.Rubric(self._config)

            def judged(sample: Sample) -> Score | Rejection:
                mark = self._stored(rubric.request(sample))
                return Score(1.0, "no mark yet") if mark is None else rubric.read(mark.text)

            gauge = replace(gauge, judged=judged, min_score=self._generate.judge.min_score)
        for sample, verdict in sift(self._chats(), gauge):
            if isinstance(verdict, Kept):
                yield self._visit(reasons.request(sample), usual)
            elif verdict.reason != NOT_THE_BEST:
                yield Visit()

    def _visit(self, request: TeacherRequest, usual: Piece) -> Visit:
        """One request of a step: paid for, or to come with the length that is known of it."""
        answer = self._stored(request)
        if answer is not None:
            return Visit((answer.usage,))
        exact = replace(usual, size=request.input_tokens, bound=len(request.canonical_body))
        return Visit(lacking=(exact,))

    def _chats(self) -> Iterator[Sample]:
        """All answers with the further turns that are there, then those from elsewhere."""
        chats: Iterable[Sample] = self._answered()
        if self._generate.turns > 1:
            talks = converse.Conversations(self._config)
            chats = (talks.extended(sample, self._stored) for sample in self._answered())
        return self._extra.after(chats)

    def _answered(self) -> Iterator[Sample]:
        return stored_samples(self._plan, self._generate, self._ledger)

    def _stored(self, request: TeacherRequest) -> Answer | None:
        return stored_answer(self._ledger, request)


def _talk(sample: Sample, answers: Iterable[Answer]) -> Talk:
    """A stored chat in tokens."""
    system = [message.content for message in sample.messages if message.role == "system"]
    turns = [message.content for message in sample.messages if message.role != "system"]
    turns += [answer.text for answer in answers]
    bound = sum(len(text.encode()) for text in (*system, *turns))
    return Talk(sum(map(estimate_tokens, system)), sum(map(estimate_tokens, turns)), bound)
