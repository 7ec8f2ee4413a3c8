"""Recorded questions asked of another student: what it would save, and how often it differs from Gemini."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from tests.routing import PricedTeacher, RoleStudent, routing
from tests.unit.test_batch_replay import trace

from potstill.infer.decide import Policy, policy
from potstill.infer.encoder import HashingEncoder
from potstill.infer.panel import Panel
from potstill.infer.private import HIDDEN
from potstill.infer.rehearsal import Candidate, geminis_answers, rehearse
from potstill.infer.replay import read_traces, replay
from potstill.infer.store import EntryStore
from potstill.records import Familiar, RouterRule
from potstill.student.answers import StudentQuery
from potstill.student.familiar import known_questions
from potstill.workspace import Workspace

TAUGHT = "How much memory does a model need?"
NEAR = "How much memory do models need?"
FOREIGN = "Who painted the ceiling of the Sistine Chapel?"


def sure(familiar: Familiar | None = None) -> Policy:
    """Uncertain, with a threshold that the tests' student is above."""
    bare = RouterRule(threshold=-0.5, coverage=1, agreement_low=0.9, reason="test")
    return policy(None, bare.model_copy(update={"familiar": familiar, "alone": bare}))


def panel(student: RoleStudent) -> Panel:
    """Both roles of a student."""
    return Panel(student, student.roles, 48)


async def test_another_student_is_priced_and_compared(tmp_path: Path) -> None:
    """A recorded run without a student: the new one answers all but the hit, and is compared with what Gemini said."""
    teacher = PricedTeacher(lambda _: "sixteen gigabytes are enough")
    async with routing(tmp_path, teacher) as router:
        for question in (NEAR, FOREIGN, NEAR):
            await router.answer(question)
    home = Workspace(tmp_path).traces
    traces = read_traces(home, home)
    with EntryStore(Workspace(tmp_path).cache_entries) as store:
        geminis = geminis_answers(traces, store.entries())
    assert set(geminis) == {NEAR, FOREIGN}

    def says(query: StudentQuery) -> str:
        return "sixteen gigabytes are enough" if query.messages[-1].content == NEAR else "a cat"

    student = RoleStudent(says)
    found = await rehearse(traces, Candidate(panel(student), sure()), geminis)
    assert (found.hits, found.students, found.gemini) == (1, 2, 0)
    assert (found.cost_usd, found.disagreed, found.compared) == (0, 1, 2)
    assert len(student.batches) <= 2


async def test_foreign_and_hidden_questions_stay_with_gemini() -> None:
    """What the new student was not taught costs what Gemini costs, as does a question that its trace does not hold."""
    encoder = HashingEncoder()
    known = known_questions([TAUGHT], encoder)
    familiar = Familiar(encoder=encoder.id, least_cosine=0.5, questions=1)
    traces = [trace(query=NEAR), trace(query=FOREIGN), trace(query=HIDDEN)]
    student = RoleStudent()
    found = await rehearse(traces, Candidate(panel(student), sure(familiar), known, encoder), {})
    assert (found.students, found.gemini, found.cost_usd) == (1, 2, Decimal("0.02"))
    assert found.share_of_all_gemini == 2 / 3
    assert found.compared == 0
    other = await rehearse(traces, Candidate(panel(student), sure(familiar), known, HashingEncoder(64)), {})
    assert other.students == 2, "by log-probability alone, where the encoder is another one"


def test_recorded_run_tells_what_random_escalation_saw() -> None:
    """As it was: of the sure answers that Gemini saw at random, how many said something else."""
    traces = [
        trace("merged", escalated=True, student_agreement=0.1),
        trace("merged", escalated=True, student_agreement=0.9),
        trace("merged", student_agreement=0.1),
    ]
    assert (replay(traces)[0].disagreed, replay(traces)[0].compared) == (1, 2)


async def test_student_without_a_threshold_never_stands_alone() -> None:
    """A verdict without a threshold leaves every question to Gemini."""
    candidate = Candidate(panel(RoleStudent()), policy(None, None))
    found = await rehearse([trace(query=NEAR)], candidate, {})
    assert (found.students, found.gemini) == (0, 1)
